"""Sound beside an untouched picture: the picture's packets are copied, the sound is encoded.

Legend: L samples, C audio channels.
"""

import io
import logging
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import av
import numpy as np
from av.container import OutputContainer
from av.stream import Disposition, Stream

from spatial_v2a.audio.stereo import checked_sound
from spatial_v2a.conditioning.media import open_input, open_output, open_written
from spatial_v2a.conditioning.video import VideoSource, picture_stream
from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub import mp4
from spatial_v2a.inference.dub.sound_file import SOUND_FORMATS, SoundFile
from spatial_v2a.inference.dub.stream_copy import (
    CopyPlan,
    StreamCopier,
    codec_of,
    copied_tags,
    family,
    is_cover,
    is_remade,
    timecode_tags,
)
from spatial_v2a.inference.marking.provenance import with_comment
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
_MP4_WRITERS = ("mp4", "mov")
# How PyAV and FFmpeg say that a container does not take a stream.
_REFUSALS = (av.error.FFmpegError, ValueError, NotImplementedError)
# What a refusal proposes first.
_REMEDIES = (".mkv", ".mp4", ".mov", ".webm")
# Packets of the picture that a trial reads back: enough to know its codec and pixels.
TRIAL_PACKETS = 12


@dataclass(frozen=True)
class SoundPlan:
    """Where the new sound lies in its file, and which sound it stands beside.

    Attributes:
        start, stop: first sample and one past the last, from the picture's start; None is the
            picture's end.
        kept: streams of the input's own sound that are copied.
        copies: all that is copied, from `plan_copies`; None finds it when the file is opened.
        tags: language and title of the new track.
        is_default: whether players choose the new track by themselves.
    """

    start: int = 0
    stop: int | None = None
    kept: tuple[int, ...] = ()
    copies: CopyPlan | None = None
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
    comment: str | None = None,
) -> SoundSink:
    """Opens the file for `source`'s sound; the suffix of `path` says with or without picture.

    A file of sound alone is as long as the picture, whatever `plan` says.

    Args:
        path: the file to write.
        source: the video.
        plan: where the sound lies in a video file, and beside what.
        kept: for a video file, packets that replace encoded ones.
        comment: for a video file, a line for its tag `comment`.
    """
    suffix = path.suffix.lower()
    if suffix in SOUND_FORMATS:
        return SoundFile(path, source)
    return DubbedVideo(path, source, plan, kept=kept, comment=comment)


def plan_copies(source: VideoSource, suffix: str, sound: tuple[int, ...] = ()) -> CopyPlan:
    """Finds which of the input's streams go into a file of `suffix`, by writing them to nowhere.

    All streams but other sound are tried: what is planned was written to its end, and its first
    packets were read back. One line of the log says what does not go along.

    Args:
        source: the input.
        suffix: of the file to write.
        sound: streams of the input's sound that must come along.

    Raises:
        UserError: the container cannot hold the picture itself, or one of `sound`.
    """
    if not source.extent.has_times:
        raise UserError(
            f"{source.path} is a raw stream without times; wrap it in MP4, or use -o with .wav"
        )
    with open_input(source.path) as container:
        required = (picture_stream(container, source.path).index, *sound)
        names = {s.index: f"{codec_of(s)} {s.type}" for s in container.streams}
        others = [
            s.index for s in container.streams
            if s.type != "audio" and s.index not in required and not is_remade(s)
        ]  # fmt: skip
        plan = CopyPlan((), tags=timecode_tags(container))
    for is_tagged in _tag_order(source, suffix):
        whole = (*required, *others)
        tagged = frozenset(whole if is_tagged else ())
        wanted = replace(plan, streams=whole, tagged=tagged)
        if _try_out(source, suffix, wanted) is None:
            return wanted
    for index in required:
        larger, reason = _extended(source, suffix, plan, index)
        if larger is None:
            kept = "" if index == required[0] else ", which is to be kept"
            raise UserError(
                f"a {suffix} file cannot hold the {names[index]} of {source.path}{kept}"
                f" ({reason}); {_remedy(source, suffix, required)}"
            )
        plan = larger
    for index in others:
        larger, _ = _extended(source, suffix, plan, index)
        plan = larger or plan
    left_out = [f"{index} ({names[index]})" for index in others if index not in plan.streams]
    if left_out:
        log.warning(
            "%s: a %s file cannot hold stream %s; left out",
            source.path, suffix, ", ".join(left_out),
        )  # fmt: skip
    return plan


def _extended(
    source: VideoSource, suffix: str, plan: CopyPlan, index: int
) -> tuple[CopyPlan | None, str]:
    """The plan with one more stream, with the input's codec tag or without; or None and why not."""
    reason = ""
    for is_tagged in _tag_order(source, suffix):
        tagged = plan.tagged | {index} if is_tagged else plan.tagged
        larger = replace(plan, streams=(*plan.streams, index), tagged=tagged)
        failure = _try_out(source, suffix, larger)
        if failure is None:
            return larger, ""
        reason = reason or failure
    return None, reason


def _tag_order(source: VideoSource, suffix: str) -> tuple[bool, bool]:
    """Whether a codec tag is tried first as it is: MP4 and MOV have other tags than AVI and TS."""
    with open_input(source.path) as container:
        is_own = family(container) in ("mov", "matroska")
    return (
        (False, True)
        if PACKAGINGS[suffix].container in _MP4_WRITERS and not is_own
        else (True, False)
    )


def _try_out(source: VideoSource, suffix: str, copies: CopyPlan) -> str | None:
    """Writes the plan's streams and a moment of silence to nowhere; None, or why that fails."""
    plan, head = SoundPlan(copies=copies), io.BytesIO()
    silence_LC = np.zeros((source.timing.samples_per_tick, source.timing.num_channels), np.float32)
    lost = None
    try:
        with DubbedVideo(head, source, plan, suffix=suffix, max_packets=TRIAL_PACKETS) as trial:
            trial.write(silence_LC)
        lost = _lost(source, copies, head)
        if lost is None:
            with DubbedVideo(_Nowhere(), source, plan, suffix=suffix) as trial:
                trial.write(silence_LC)
    except UserError:
        raise
    except _REFUSALS as error:
        return str(getattr(error, "strerror", None) or error)
    return lost


def _lost(source: VideoSource, copies: CopyPlan, written: io.BytesIO) -> str | None:
    """What is not in a trial file as it is in the input; None when everything is."""
    written.seek(0)
    with open_input(source.path) as container, open_written(written) as trial:
        found = [_kind(stream) for stream in trial.streams]
        for index in copies.streams:
            kind = _kind(container.streams[index])
            if kind not in found:
                return f"{kind[1]} comes back as something else"
            found.remove(kind)
    return None


def _kind(stream: Stream) -> tuple:
    """What must be the same of a stream and its copy; of a picture also how its pixels lie."""
    if is_cover(stream):
        return "cover", codec_of(stream)
    if stream.type != "video":
        return stream.type, codec_of(stream)
    context = stream.codec_context
    if context is None:
        return "video", "unknown"
    layout = context.format.name.replace("yuvj", "yuv") if context.format else None
    return "video", codec_of(stream), context.width, context.height, layout


def _remedy(source: VideoSource, suffix: str, streams: tuple[int, ...]) -> str:
    """Another container that holds these streams, after trying; a command where there is none."""
    fitting = [s for s in _REMEDIES if s != suffix and _holds(source, s, streams)][:1]
    command = "" if fitting else f"convert it first: {_conversion(source, streams)}"
    # Sound alone needs no container for pictures, but it is one track.
    fitting += [".wav"] if len(streams) == 1 else []
    use = f"use -o with {' or '.join(fitting)}" if fitting else ""
    return ", or ".join(words for words in (use, command) if words)


def _conversion(source: VideoSource, streams: tuple[int, ...]) -> str:
    """A command line that makes a Matroska file of these streams; sound without loss."""
    picture = "copy" if _holds(source, ".mkv", streams[:1]) else "libx264"
    out = source.path.with_name(f"{source.path.stem}.converted.mkv")
    # FFmpeg takes a colon for a protocol and a dash for an option.
    names = [
        f"file:{p}" if ":" in str(p) or str(p)[0] == "-" else str(p) for p in (source.path, out)
    ]
    kept = "-map 0:v:0 -map 0:a? -c:a flac".split()
    return shlex.join(["ffmpeg", "-i", names[0], *kept, "-c:v", picture, names[1]])


def _holds(source: VideoSource, suffix: str, streams: tuple[int, ...]) -> bool:
    plan: CopyPlan | None = CopyPlan(())
    for index in streams:
        if plan is not None:
            plan, _ = _extended(source, suffix, plan, index)
    return plan is not None


class _Nowhere(io.RawIOBase):
    """A file that keeps nothing but its size."""

    def __init__(self) -> None:
        self._place = self._size = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self._place += len(data)
        self._size = max(self._size, self._place)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place


class DubbedVideo:
    """The picture's own packets with new sound; both are interleaved as the sound arrives."""

    def __init__(
        self,
        target: Path | BinaryIO,
        source: VideoSource,
        plan: SoundPlan | None = None,
        *,
        kept: KeptPackets | None = None,
        comment: str | None = None,
        suffix: str | None = None,
        max_packets: int | None = None,
    ) -> None:
        """Writes the header.

        Args:
            target: the file to write, or where a trial goes.
            source: the video.
            plan: where the sound lies, and beside what.
            kept: packets that replace encoded ones.
            comment: from `unsigned_comment`; that of an earlier dub goes.
            suffix: of the file's name; None takes it from `target`.
            max_packets: for a trial: packets of the picture after which its copying ends.
        """
        plan = plan or SoundPlan()
        suffix = suffix or target.suffix.lower()
        copies = plan.copies or plan_copies(source, suffix, plan.kept)
        packaging = PACKAGINGS[suffix]
        self._target = target
        self._kept_sound = kept
        self._source = source
        self._copies = copies
        self._timing = source.timing
        self._left = (source.num_samples if plan.stop is None else plan.stop) - plan.start
        self._sent = 0
        # The sound lies where the picture starts on the file's own clock, or as planned.
        self._start = round(source.extent.start_s * source.timing.sample_rate_hz) + plan.start
        self._format = packaging.sample_format
        with ExitStack() as stack:
            self._input = stack.enter_context(open_input(source.path))
            picture = self._input.streams[copies.streams[0]]
            self._output = open_output(
                target,
                format=packaging.container,
                options=_container_options(picture, packaging),
            )
            self._copier = StreamCopier(
                self._input,
                source.path,
                self._output,
                copies,
                end_s=source.extent.start_s + source.duration,
                max_packets=max_packets,
            )
            # The new track stands before the others, as the one that is played.
            self._copier.add(copies.streams[:1])
            if plan.is_default:
                self._audio = _add_sound(self._output, packaging, plan)
            self._copier.add(copies.streams[1:], is_sound_default=not plan.is_default)
            if not plan.is_default:
                self._audio = _add_sound(self._output, packaging, plan)
            for stream in self._output.streams:
                stream.id = stream.index + 1
            tags = copied_tags(self._input.metadata)
            self._output.metadata.update(with_comment(tags, comment))
            if chapters := self._input.chapters():
                self._output.set_chapters(chapters)
            self._output.start_encoding()
            self._opened = stack.pop_all()

    def write(self, audio_LC: np.ndarray) -> None:
        """Appends float sound [L, 2]; what reaches past the picture's end is cut."""
        audio_LC = checked_sound(audio_LC[: self._left], where="the mix")
        if len(audio_LC) == 0:
            return
        frame = _audio_frame(audio_LC, self._format)
        frame.sample_rate = self._timing.sample_rate_hz
        frame.time_base = Fraction(1, self._timing.sample_rate_hz)
        frame.pts = self._start + self._sent
        self._left -= len(audio_LC)
        self._sent += len(audio_LC)
        self._copier.write_until(Fraction(self._start + self._sent, self._timing.sample_rate_hz))
        self._write_sound(self._audio.encode(frame))

    def close(self) -> None:
        """Flushes the encoder, copies the rest of the picture and completes the file."""
        self._write_sound(self._audio.encode(None))
        self._copier.write_until(None)
        self._output.close()
        if self._output.format.name in _MP4_WRITERS:
            if isinstance(self._target, Path):
                with open(self._target, "r+b") as target:
                    self._keep_entries(target)
            elif self._target.readable():
                self._keep_entries(self._target)
        self._opened.close()

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
        self._opened.close()

    def _keep_entries(self, target: BinaryIO) -> None:
        """Gives pictures the sample entries that they have in the input, or would have in MP4."""
        if family(self._input) == "mov":
            is_mov = self._input.metadata.get("major_brand", "qt  ") == "qt  "
            is_whole = is_mov == (self._output.format.name == "mov")
            with self._source.path.open("rb") as file:
                for original, copy in self._copier.pairs:
                    entry = mp4.sample_entry(file, original.id) if copy.type == "video" else None
                    if entry is not None:
                        mp4.keep_sample_entry(target, copy.id, entry, is_whole=is_whole)
        elif self._output.format.name == "mov":
            # FFmpeg writes Dolby Vision into MP4 only.
            entry = self._entry_in_mp4()
            if entry is not None:
                mp4.keep_sample_entry(target, 1, entry, is_whole=False)

    def _entry_in_mp4(self) -> bytes | None:
        head, plan = io.BytesIO(), SoundPlan(copies=CopyPlan(self._copies.streams[:1]))
        try:
            with DubbedVideo(head, self._source, plan, suffix=".mp4", max_packets=1):
                pass
        except _REFUSALS as error:
            log.debug("MP4 does not hold this picture: %s", error)
            return None
        return mp4.sample_entry(head, 1)

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


def _container_options(picture: Stream, packaging: Packaging) -> dict[str, str]:
    # Dolby Vision and spherical video are not in the base standards.
    options = {"strict": "unofficial"}
    if packaging.container in _MP4_WRITERS:
        # MP4 would state lengths in milliseconds; the audio clock makes them exact.
        options["movie_timescale"] = str(TIMING.sample_rate_hz)
        options["use_stream_ids_as_track_ids"] = "1"
        if family(picture.container) == "mov" and picture.time_base.numerator == 1:
            options["video_track_timescale"] = str(picture.time_base.denominator)
    return options


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
