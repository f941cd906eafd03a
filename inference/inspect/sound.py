"""The sound of any audio or video file, streamed window by window at its own sample rate.

Nothing is resampled or mixed: clipping and "left equals right" are only true of the stored samples.
Legend: L samples, C audio channels as stored.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from spatial_v2a.conditioning.media import decoded, is_cover, open_input
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import WINDOW_TICKS

# Timestamps may be rounded or jitter by this much; beyond it the sound has a gap or overlaps.
MAX_JUMP_S = Fraction(1, 20)
# The largest sample of 16 bits; finer formats and floats are at full scale from there on.
FULL_SCALE = 1.0 - 1.0 / 32768
FULL_SCALE_8_BIT = 1.0 - 1.0 / 128


@dataclass(frozen=True)
class Track:
    """What a file says of its first sound track.

    Attributes:
        container, codec: FFmpeg's short names.
        container_name, codec_name: the same in words.
        sample_rate_hz, num_channels: of the decoded samples.
        layout: name of the channel layout; like "6 channels" when the file states none.
        channel_names: left and right for two channels, else FL, FR, FC, ..., or numbers from 1
            when the file states no layout.
        pair: which two channels are left and right; None when there is no such pair.
        is_pair_assumed: whether the pair is a guess because the layout is unknown.
        num_tracks: sound tracks in the file; only the first is inspected.
        stated_s: length of the track in the header, seconds; None when it is not stated.
        has_picture: whether there is a picture in motion.
        full_scale: magnitude from which on a sample is at full scale.
    """

    container: str
    container_name: str
    codec: str
    codec_name: str
    sample_rate_hz: int
    num_channels: int
    layout: str
    channel_names: tuple[str, ...]
    pair: tuple[int, int] | None
    is_pair_assumed: bool
    num_tracks: int
    stated_s: float | None
    has_picture: bool
    full_scale: float


@dataclass(frozen=True)
class Window:
    """WINDOW_TICKS of sound, 0.2 s (the last one may be shorter).

    Attributes:
        time_s: when it begins on the file's own clock.
        tick_starts: index of the first sample of each tick of 1/30 s in it.
        samples_LC: float64, full scale 1.
    """

    time_s: float
    tick_starts: np.ndarray
    samples_LC: np.ndarray


def open_media(path: Path) -> AbstractContextManager[InputContainer]:
    """Opens an audio or video file; what cannot be opened is a UserError with the remedy."""
    return open_input(path, kind="audio or video file")


def describe_track(path: Path) -> Track:
    """Reads the headers and the first sound of a file.

    Raises:
        UserError: missing, unreadable, without a sound track, or with an empty one.
    """
    with open_media(path) as container:
        stream = _sound_stream(container, path)
        first = next(_frames(container, stream), None)
        if first is None:
            raise UserError(
                f"{path} has a sound track with no sound in it; record or copy it again"
            )
        names = tuple(channel.name for channel in first.layout.channels)
        pair, is_assumed = _left_right(names, first.layout.name)
        return Track(
            container=container.format.name,
            container_name=container.format.long_name or container.format.name,
            codec=stream.codec_context.codec.name,
            codec_name=stream.codec_context.codec.long_name,
            sample_rate_hz=first.sample_rate,
            num_channels=len(names),
            layout=first.layout.name,
            channel_names=_labels(names),
            pair=pair,
            is_pair_assumed=is_assumed,
            num_tracks=len(container.streams.audio),
            stated_s=float(stream.duration * stream.time_base) if stream.duration else None,
            has_picture=any(not is_cover(video) for video in container.streams.video),
            full_scale=FULL_SCALE_8_BIT if first.format.name.startswith("u8") else FULL_SCALE,
        )


class SoundReader:
    """Streams a track's windows; only one window and one decoded frame are in memory.

    Attributes:
        num_samples: read so far, per channel.
        num_damaged: packets that could not be decoded; their sound is missing.
        num_gaps, gap_s: jumps of the timestamps, and what they sum to (overlaps count negative).
    """

    def __init__(self, path: Path, track: Track) -> None:
        self.path = path
        self.track = track
        self.num_samples = 0
        self.num_gaps = 0
        self.gap_s = 0.0
        self.num_damaged = 0

    def windows(self) -> Iterator[Window]:
        """Yields every window of the track, in order.

        Raises:
            UserError: the sample rate or the number of channels changes on the way.
        """
        rate = self.track.sample_rate_hz
        waiting_LC = np.zeros((0, self.track.num_channels))
        start, index = 0, 0
        times: list[tuple[int, Fraction]] = []
        for time_s, samples_LC in self._pieces():
            times.append((start + len(waiting_LC), time_s))
            waiting_LC = np.concatenate([waiting_LC, samples_LC])
            while start + len(waiting_LC) >= (end := _tick_start((index + 1) * WINDOW_TICKS, rate)):
                yield self._window(waiting_LC[: end - start], index, times)
                waiting_LC, start, index = waiting_LC[end - start :], end, index + 1
        if len(waiting_LC):
            yield self._window(waiting_LC, index, times)

    def _window(
        self, samples_LC: np.ndarray, index: int, times: list[tuple[int, Fraction]]
    ) -> Window:
        rate = self.track.sample_rate_hz
        first = index * WINDOW_TICKS
        start = _tick_start(first, rate)
        while len(times) > 1 and times[1][0] <= start:
            del times[0]
        time_s = times[0][1] + Fraction(start - times[0][0], rate)
        ticks = np.array([_tick_start(first + k, rate) - start for k in range(WINDOW_TICKS)])
        return Window(float(time_s), ticks[ticks < len(samples_LC)], samples_LC)

    def _pieces(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """(time of the first sample, float64 [L, C]) of each decoded frame."""
        track, expected_s = self.track, None
        with open_media(self.path) as container:
            stream = _sound_stream(container, self.path)
            for frame in _frames(container, stream, self._count_damage):
                found = (frame.sample_rate, len(frame.layout.channels))
                if found != (track.sample_rate_hz, track.num_channels):
                    at_s = self.num_samples / track.sample_rate_hz
                    raise UserError(
                        f"{self.path} changes from {track.num_channels} channels at"
                        f" {track.sample_rate_hz} Hz to {found[1]} at {found[0]} Hz after"
                        f" {at_s:.1f} s; cut it there and inspect the parts"
                    )
                time_s = expected_s or Fraction(0)
                if frame.pts is not None:
                    time_s = frame.pts * Fraction(frame.time_base)
                if expected_s is not None and abs(time_s - expected_s) > MAX_JUMP_S:
                    self.num_gaps += 1
                    self.gap_s += float(time_s - expected_s)
                expected_s = time_s + Fraction(frame.samples, track.sample_rate_hz)
                self.num_samples += frame.samples
                yield time_s, to_samples(frame)

    def _count_damage(self) -> None:
        self.num_damaged += 1


def to_samples(frame: av.AudioFrame) -> np.ndarray:
    """A decoded frame as float64 [L, C] with full scale 1; exact for up to 32 bits."""
    values = frame.to_ndarray()
    samples_LC = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype == np.uint8:
        return (samples_LC.astype(np.float64) - 128.0) / 128.0
    if np.issubdtype(values.dtype, np.integer):
        return samples_LC / (-float(np.iinfo(values.dtype).min))
    return samples_LC.astype(np.float64)


def _tick_start(tick: int, sample_rate_hz: int) -> int:
    """First sample of a tick; rates that 30 does not divide have ticks of two lengths."""
    return tick * sample_rate_hz // TIMING.tick_hz


def _sound_stream(container: InputContainer, path: Path) -> av.AudioStream:
    if not container.streams.audio:
        kind = "a picture but no sound track" if container.streams.video else "no sound track"
        raise UserError(
            f"{path} holds {kind}; there is nothing to inspect (spatial-v2a dub gives it sound)"
        )
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise UserError(f"{path}: its sound has an unknown codec; convert it to WAV first")
    return stream


def _frames(
    container: InputContainer, stream: av.AudioStream, on_damage: Callable[[], None] | None = None
) -> Iterator[av.AudioFrame]:
    """Decoded frames that hold samples; `on_damage` is called for a packet without."""
    for frame in decoded(container, stream):
        if frame is not None and frame.samples:
            yield frame
        elif frame is None and on_damage is not None:
            on_damage()


def _left_right(names: tuple[str, ...], layout: str) -> tuple[tuple[int, int] | None, bool]:
    """Indices of left and right, and whether they had to be assumed."""
    if len(names) < 2 or layout.startswith("ambisonic"):
        return None, False
    if "FL" in names and "FR" in names:
        return (names.index("FL"), names.index("FR")), False
    # Two channels are left and right by every convention; more are a guess.
    return (0, 1), len(names) > 2


def _labels(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that a reader understands."""
    if len(names) <= 2:
        return ("mono",) if len(names) == 1 else ("left", "right")
    return tuple(
        str(index) if name in ("", "NONE") else name for index, name in enumerate(names, start=1)
    )
