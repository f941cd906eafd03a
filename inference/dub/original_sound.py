"""The sound that a video already has: which tracks, from when to when, and its samples on a clock.

Legend: L samples, C audio channels, T ticks, E energies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from spatial_v2a.audio.stereo import StereoMeter
from spatial_v2a.conditioning.media import (
    decoded,
    num_channels,
    open_input,
    packets,
    with_left_right,
)
from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING


@dataclass(frozen=True)
class OriginalTrack:
    """One sound track of a file.

    Attributes:
        path: the file.
        index: its stream in the file.
        start_s, end_s: from its first sample to the end of its packets, on the file's own clock;
            packets may begin earlier, with samples that a decoder drops.
        tags: language, title and so on.
        num_channels: as stored.
    """

    path: Path
    index: int
    start_s: Fraction
    end_s: Fraction
    tags: dict[str, str]
    num_channels: int


def original_tracks(path: Path, *, kind: str = "video file") -> list[OriginalTrack]:
    """Every sound track that holds sound, the default one first (decodes the first frames only).

    Raises:
        UserError: the file cannot be opened.
    """
    with open_input(path, kind=kind) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        extents: dict[int, tuple[Fraction, Fraction]] = {}
        for packet in packets(container, *streams) if streams else ():
            if packet.size and packet.pts is not None:
                start_s = packet.pts * Fraction(packet.time_base)
                end_s = start_s + (packet.duration or 0) * Fraction(packet.time_base)
                known = extents.get(packet.stream_index, (start_s, end_s))
                extents[packet.stream_index] = (min(known[0], start_s), max(known[1], end_s))
        streams.sort(key=lambda s: not s.disposition & Disposition.default)
        found = [
            OriginalTrack(path, s.index, *extents[s.index], dict(s.metadata), num_channels(s))
            for s in streams
            if s.index in extents
        ]
    return [replace(track, start_s=_first_sample_s(track)) for track in found]


def _first_sample_s(track: OriginalTrack) -> Fraction:
    """When its first sample is heard, or its packets begin where nothing can be decoded."""
    with open_input(track.path) as container:
        for frame in decoded(container, container.streams[track.index]):
            if frame is not None and frame.pts is not None:
                return frame.pts * Fraction(frame.time_base)
    return track.start_s


def track_pieces(
    track: OriginalTrack, *, start_s: Fraction, num_samples: int
) -> Iterator[np.ndarray]:
    """The track's sound from `start_s` on, as stereo at our rate: gaps silent, overlaps cut.

    Yields:
        float32 [1600, 2] (the last one may be shorter), `num_samples` in all.
    """
    step, num_done = TIMING.samples_per_tick, 0
    waiting_LC = np.zeros((0, TIMING.num_channels), np.float32)
    for time_s, piece_LC in _decoded(track):
        offset = round((time_s - start_s) * TIMING.sample_rate_hz)
        missing = offset - num_done - len(waiting_LC)
        while missing > 0 and num_done < num_samples:
            # A gap is filled piece by piece: it may be hours long.
            filled = min(missing, step)
            waiting_LC = np.pad(waiting_LC, ((0, filled), (0, 0)))
            missing -= filled
            if len(waiting_LC) >= step:
                yield waiting_LC[: min(step, num_samples - num_done)]
                waiting_LC, num_done = waiting_LC[step:], num_done + step
        waiting_LC = np.concatenate([waiting_LC, piece_LC[max(0, -missing) :]])
        while len(waiting_LC) >= step and num_done < num_samples:
            yield waiting_LC[: min(step, num_samples - num_done)]
            waiting_LC, num_done = waiting_LC[step:], num_done + step
        if num_done >= num_samples:
            return
    while num_done < num_samples:
        piece_LC = waiting_LC[:step]
        length = min(step, num_samples - num_done)
        yield np.pad(piece_LC, ((0, max(0, length - len(piece_LC))), (0, 0)))[:length]
        waiting_LC, num_done = waiting_LC[step:], num_done + step


def original_energies(source: VideoSource, *, sound: Path | None = None) -> np.ndarray | None:
    """Stereo energies [T, 3] of the video's first sound track, on the picture's clock.

    Args:
        source: the video.
        sound: a file with the video's true sound, when the video itself comes without.

    Returns:
        One row per tick of the picture (silence where the track does not reach), or None when
        there is no stereo track.
    """
    tracks = original_tracks(sound or source.path)
    if not tracks or tracks[0].num_channels < TIMING.num_channels:
        return None
    meter = StereoMeter()
    num_samples = source.num_ticks * TIMING.samples_per_tick
    for piece_LC in track_pieces(tracks[0], start_s=source.extent.start_s, num_samples=num_samples):
        meter.add(piece_LC)
    return meter.energies_TE


def _decoded(track: OriginalTrack) -> Iterator[tuple[Fraction, np.ndarray]]:
    """(time of the first sample in seconds, float32 [L, 2]) of decoded, resampled sound.

    Containers round times, Matroska to milliseconds: a piece that begins within such a unit of
    where the last one ended is its continuation.
    """
    # One channel goes to both sides as it is: a player does that, FFmpeg would take 3 dB off.
    layout = "mono" if track.num_channels == 1 else "stereo"
    resampler = av.AudioResampler(format="flt", layout=layout, rate=TIMING.sample_rate_hz)
    expected_s: Fraction | None = None
    with open_input(track.path) as container:
        stream = container.streams[track.index]
        unit_s = Fraction(stream.time_base) + Fraction(1, TIMING.sample_rate_hz)
        # A damaged packet is a gap.
        frames = (f for f in decoded(container, stream) if f is not None)
        for frame in chain(map(with_left_right, frames), [None]):
            for piece in resampler.resample(frame):
                if piece.pts is None:
                    continue
                time_s = piece.pts * Fraction(piece.time_base)
                if expected_s is not None and abs(time_s - expected_s) <= unit_s:
                    time_s = expected_s
                expected_s = time_s + Fraction(piece.samples, TIMING.sample_rate_hz)
                samples_LC = piece.to_ndarray().reshape(piece.samples, -1)
                if not np.isfinite(samples_LC).all():
                    raise UserError(
                        f"a sound track of {track.path} holds samples that are not finite at"
                        f" {float(time_s):.2f} s; leave it out with --original drop, or repair it"
                    )
                yield time_s, np.broadcast_to(samples_LC, (piece.samples, TIMING.num_channels))
