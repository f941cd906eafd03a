"""Sound beside an untouched picture: the picture's packets are copied, the sound is encoded.

Legend: L samples, C audio channels.
"""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.conditioning.video_scan import open_input, picture_stream
from spatial_v2a.errors import UserError
from spatial_v2a.inference.sound_file import SOUND_FORMATS, SoundFile
from spatial_v2a.timing import TIMING

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaging:
    """How sound is stored for one suffix: FFmpeg's container, encoder, sample format, options."""

    container: str
    codec: str
    sample_format: str
    options: dict[str, str]


# Intensity stereo would replace the phase of one channel, so the AAC encoder may not use it; nor
# noise substitution, whose noise depends in a decoder on all packets before.
_AAC = ("aac", "fltp", {"b": "256000", "aac_is": "0", "aac_pns": "0"})
_FLAC = ("flac", "s32", {})
PACKAGINGS = {
    ".mp4": Packaging("mp4", *_AAC),
    ".m4v": Packaging("mp4", *_AAC),
    ".mov": Packaging("mov", *_AAC),
    ".mkv": Packaging("matroska", *_FLAC),
    ".webm": Packaging("webm", "libopus", "flt", {"b": "192000"}),
}
# Tags that describe the old file, not its content.
STALE_TAGS = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}


@dataclass(frozen=True)
class SoundPlan:
    """Where the new sound lies in its file, and which sound it stands beside.

    Attributes:
        start, stop: first sample and one past the last, from the picture's start; None is the
            picture's end.
        kept: streams of the input's own sound that are copied.
        tags: language and title of the new track.
        is_default: whether players choose the new track by themselves.
    """

    start: int = 0
    stop: int | None = None
    kept: tuple[int, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    is_default: bool = True


class SoundSink(Protocol):
    """Takes sound piece by piece; the file is complete after `close`."""

    def write(self, audio_LC: np.ndarray) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def check_suffix(path: Path) -> None:
    """Refuses a suffix that cannot be written.

    Raises:
        UserError: the suffix is none of PACKAGINGS and SOUND_FORMATS.
    """
    known = [*PACKAGINGS, *SOUND_FORMATS]
    if path.suffix.lower() not in known:
        raise UserError(f"cannot write '{path.suffix}' ({path}); use one of {', '.join(known)}")


class KeptPackets(Protocol):
    """Sound packets of an earlier file that stay as they are."""

    def choose(self, packet: av.Packet) -> av.Packet:
        """The packet to write for the next one that was encoded: itself, or the one that stays."""
        ...


def open_sink(
    path: Path,
    source: VideoSource,
    plan: SoundPlan | None = None,
    *,
    kept: KeptPackets | None = None,
) -> SoundSink:
    """Opens the file for `source`'s sound; the suffix of `path` says with or without picture.

    A file of sound alone is as long as the picture, whatever `plan` says.

    Args:
        path: the file to write.
        source: the video.
        plan: where the sound lies in a video file, and beside what.
        kept: for a video file, packets that replace encoded ones.
    """
    suffix = path.suffix.lower()
    if suffix in SOUND_FORMATS:
        return SoundFile(path, source)
    return DubbedVideo(path, source, plan, kept=kept)


def kept_streams(source: VideoSource, suffix: str, sound: tuple[int, ...] = ()) -> list[int]:
    """Indices of the input's streams that the container of `suffix` can hold, picture first.

    All streams but sound are tried, by writing a header to memory.

    Args:
        source: the input.
        suffix: of the file to write.
        sound: streams of the input's sound that must come along.

    Raises:
        UserError: the container cannot hold the picture itself, or one of `sound`.
    """
    packaging = PACKAGINGS[suffix]
    if not source.extent.has_times:
        raise UserError(
            f"{source.path} is a raw stream without times; wrap it in MP4, or use -o with .wav"
        )
    with open_input(source.path) as container:
        picture = picture_stream(container, source.path)
        others = [
            s.index
            for s in container.streams
            if s.type in ("video", "subtitle", "data", "attachment") and s.index != picture.index
        ]
        if not _can_hold(container, [picture.index], packaging):
            raise UserError(
                f"a {suffix} file cannot hold the {picture.codec_context.name} video of"
                f" {source.path}; use -o with .mkv or .wav, or convert it to H.264 first"
            )
        for index in sound:
            name = container.streams[index].codec_context.name
            if not _can_hold(container, [picture.index, index], packaging) or (
                # FFmpeg's MP4 writer fails at its end on PCM that comes from another container.
                packaging.container in ("mp4", "mov")
                and name.startswith("pcm_")
                and "mov" not in container.format.name
            ):
                raise UserError(
                    f"a {suffix} file cannot hold the {name} sound track of {source.path}, which is"
                    " to be kept; use -o with .mkv"
                )
        required = [picture.index, *sound]
        if _can_hold(container, [*required, *others], packaging):
            return [*required, *others]
        return required + [
            index for index in others if _can_hold(container, [picture.index, index], packaging)
        ]


class DubbedVideo:
    """The picture's own packets with new sound; both are interleaved as the sound arrives."""

    def __init__(
        self,
        path: Path,
        source: VideoSource,
        plan: SoundPlan | None = None,
        *,
        kept: KeptPackets | None = None,
    ) -> None:
        plan = plan or SoundPlan()
        self._kept_sound = kept
        packaging = PACKAGINGS[path.suffix.lower()]
        self._timing = source.timing
        self._left = (source.num_samples if plan.stop is None else plan.stop) - plan.start
        self._sent = 0
        self._end_s = source.extent.start_s + source.duration
        # The sound lies where the picture starts on the file's own clock, or as planned.
        self._start = round(source.extent.start_s * source.timing.sample_rate_hz) + plan.start
        indices = kept_streams(source, path.suffix.lower(), plan.kept)
        self._opened = open_input(source.path)
        self._input = self._opened.__enter__()
        # MP4 would state lengths in milliseconds; the audio clock makes them exact.
        is_mp4 = packaging.container in ("mp4", "mov")
        options = {"movie_timescale": str(source.timing.sample_rate_hz)} if is_mp4 else {}
        self._output = av.open(
            str(path), "w", format=packaging.container, container_options=options
        )
        # The new track stands before the others, as the one that is played.
        self._streams = _add_copies(self._input, self._output, indices[:1])
        if plan.is_default:
            self._audio = _add_sound(self._output, packaging, plan)
        self._streams |= _add_copies(
            self._input, self._output, indices[1:], is_sound_default=not plan.is_default
        )
        if not plan.is_default:
            self._audio = _add_sound(self._output, packaging, plan)
        self._format = packaging.sample_format
        _copy_tags(self._input, self._output)
        self._output.start_encoding()
        self._packets = self._kept_packets()
        self._next_packet = next(self._packets, None)

    def write(self, audio_LC: np.ndarray) -> None:
        """Appends float sound [L, 2]; what reaches past the picture's end is cut."""
        audio_LC = audio_LC[: self._left]
        if len(audio_LC) == 0:
            return
        frame = _audio_frame(audio_LC, self._format)
        frame.sample_rate = self._timing.sample_rate_hz
        frame.time_base = Fraction(1, self._timing.sample_rate_hz)
        frame.pts = self._start + self._sent
        self._left -= len(audio_LC)
        self._sent += len(audio_LC)
        self._copy_until(Fraction(self._start + self._sent, self._timing.sample_rate_hz))
        self._write_sound(self._audio.encode(frame))

    def close(self) -> None:
        """Flushes the encoder, copies the rest of the picture and completes the file."""
        self._write_sound(self._audio.encode(None))
        self._copy_until(None)
        self._output.close()
        self._opened.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self._output.close()
        except av.error.FFmpegError as broken:
            # The first error is the one to tell; this file is thrown away.
            log.debug("closing an unfinished file: %s", broken)
        self._opened.__exit__(None, None, None)

    def _write_sound(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._output.mux_one(packet if self._kept_sound is None else self._choose(packet))

    def _choose(self, packet: av.Packet) -> av.Packet:
        assert self._kept_sound is not None
        chosen = self._kept_sound.choose(packet)
        if chosen is not packet:
            chosen.pts, chosen.dts, chosen.time_base = packet.pts, packet.dts, packet.time_base
            chosen.stream = self._audio
        return chosen

    def _copy_until(self, limit_s: Fraction | None) -> None:
        """Copies packets whose decoding time is before the limit; all when it is None."""
        while self._next_packet is not None:
            packet = self._next_packet
            stamp = packet.dts if packet.dts is not None else packet.pts
            if limit_s is not None and stamp is not None:
                if stamp * Fraction(packet.time_base) > limit_s:
                    return
            packet.stream = self._streams[packet.stream_index]
            self._output.mux_one(packet)
            self._next_packet = next(self._packets, None)

    def _kept_packets(self) -> Iterator[av.Packet]:
        """Packets to copy; those an edit list hides behind the picture's end are left out."""
        inputs = [self._input.streams[index] for index in self._streams]
        for packet in self._input.demux(inputs):
            if packet.size == 0:
                continue
            if packet.pts is None and packet.dts is not None:
                packet.pts = packet.dts
            if packet.is_discard and packet.dts is not None:
                if packet.dts * Fraction(packet.time_base) >= self._end_s:
                    continue
            yield packet


def _add_copies(
    source: InputContainer,
    target: OutputContainer,
    indices: list[int],
    *,
    is_sound_default: bool = True,
) -> dict[int, av.stream.Stream]:
    """Streams of `target` that take the packets of `source` as they are, by input index.

    Args:
        source, target: the containers.
        indices: streams of `source`.
        is_sound_default: whether a copied sound track may stay the one that is played.
    """
    copies = {}
    for index in indices:
        original = source.streams[index]
        copy = target.add_stream_from_template(original)
        copy.time_base = original.time_base
        copy.disposition = original.disposition
        if original.type == "audio" and not is_sound_default:
            copy.disposition = original.disposition & ~Disposition.default
        tags = {k: v for k, v in original.metadata.items() if k.lower() not in STALE_TAGS}
        copy.metadata.update(tags)
        copies[index] = copy
    return copies


def _add_sound(target: OutputContainer, packaging: Packaging, plan: SoundPlan) -> av.AudioStream:
    stream = target.add_stream(
        packaging.codec,
        rate=TIMING.sample_rate_hz,
        layout="stereo",
        format=packaging.sample_format,
        options=packaging.options,
    )
    stream.time_base = Fraction(1, TIMING.sample_rate_hz)
    stream.metadata.update(plan.tags)
    stream.disposition = Disposition.default if plan.is_default else Disposition(0)
    return stream


def _copy_tags(source: InputContainer, target: OutputContainer) -> None:
    tags = {k: v for k, v in source.metadata.items() if k.lower() not in STALE_TAGS}
    target.metadata.update(tags)
    chapters = source.chapters()
    if chapters:
        target.set_chapters(chapters)


def _can_hold(source: InputContainer, indices: list[int], packaging: Packaging) -> bool:
    """Whether the container takes these streams: a trial in memory, whose refusal is the answer."""
    try:
        with av.open(io.BytesIO(), "w", format=packaging.container) as trial:
            _add_copies(source, trial, indices)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError, NotImplementedError):
        return False
    return True


def _audio_frame(audio_LC: np.ndarray, sample_format: str) -> av.AudioFrame:
    """Float sound [L, 2] as an FFmpeg frame; `s32` carries 24 bits in its upper part."""
    audio_LC = np.clip(audio_LC, -1.0, 1.0)
    if sample_format == "s32":
        steps_LC = np.rint(np.clip(audio_LC.astype(np.float64) * 2**23, -(2**23), 2**23 - 1))
        packed = (steps_LC.astype(np.int32) << 8).reshape(1, -1)
    elif sample_format == "fltp":
        packed = np.ascontiguousarray(audio_LC.T, dtype=np.float32)
    else:
        packed = np.ascontiguousarray(audio_LC, dtype=np.float32).reshape(1, -1)
    return av.AudioFrame.from_ndarray(packed, format=sample_format, layout="stereo")
