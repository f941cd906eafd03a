"""Copies streams from one container into another: parameters, side data and packets as they are."""

import ctypes
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.stream import Discard, Disposition, Stream
from av.video.stream import VideoStream

from spatial_v2a.conditioning.media import open_input, packets

log = logging.getLogger(__name__)

# Tags that describe the old file, not its content.
STALE_TAGS = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}
# Who encoded a stream is true of its copy too.
STALE_STREAM_TAGS = {"duration"}
# PyAV makes a stream only of a codec that the container is known for; then the true parameters
# replace those of this one, and the muxer itself judges them.
_STAND_INS = {
    "mp4": {"video": "h264", "audio": "aac", "subtitle": "mov_text"},
    "mov": {"video": "h264", "audio": "aac", "subtitle": "mov_text"},
    "matroska": {"video": "h264", "audio": "flac", "subtitle": "subrip"},
    "webm": {"video": "vp8", "audio": "opus", "subtitle": "webvtt"},
}
COVER = Disposition.attached_pic
_COVER_NAMES = {
    "mjpeg": ("cover.jpg", "image/jpeg"),
    "png": ("cover.png", "image/png"),
    "gif": ("cover.gif", "image/gif"),
    "tiff": ("cover.tif", "image/tiff"),
}
# A trial that has seen no picture that stands alone goes on, but not for ever.
_MAX_TRIAL_FACTOR = 20
# How PyAV shows a codec tag of 0.
_NO_TAG = 4 * "\0"
# Where `AVStream *` lies in PyAV's Stream, and fields in it (libavformat 62).
_POINTER, _INDEX, _TIME_BASE, _SAMPLE_ASPECT_RATIO = 24, 8, 32, 72


@dataclass(frozen=True)
class CopyPlan:
    """What of a file goes into another container.

    Attributes:
        streams: their indices, the picture first.
        tagged: those whose codec tag goes along (`hvc1`, `ap4h`); the container gives the others
            its own.
        tags: metadata of the picture that comes from streams left out: the timecode.
    """

    streams: tuple[int, ...]
    tagged: frozenset[int] = frozenset()
    tags: tuple[tuple[str, str], ...] = ()


def family(container: InputContainer | OutputContainer) -> str:
    """`mov` for MP4 and MOV, `matroska` for Matroska and WebM, or the format's own name."""
    names = container.format.name.split(",")
    if {"mov", "mp4"} & set(names):
        return "mov"
    return "matroska" if {"matroska", "webm"} & set(names) else names[0]


def is_cover(stream: Stream) -> bool:
    """Whether it is a picture that stands for the file."""
    return stream.type == "video" and stream.disposition & ~Disposition.default == COVER


def is_remade(stream: Stream) -> bool:
    """Whether the writer makes the stream itself: of chapters, and of the picture's timecode."""
    is_chapters = stream.type == "data" and stream.discard == Discard.all
    return is_chapters or _is_timecode(stream)


def timecode_tags(container: InputContainer) -> tuple[tuple[str, str], ...]:
    """Metadata of the first timecode track that MP4 writers make another one of."""
    for stream in container.streams:
        if _is_timecode(stream):
            names = ("timecode", "reel_name")
            return tuple((name, stream.metadata[name]) for name in names if name in stream.metadata)
    return ()


def codec_of(stream: Stream) -> str:
    """The codec's name, whichever decoder is at work."""
    if stream.codec_context is not None:
        return stream.codec_context.codec.canonical_name
    return getattr(stream, "name", None) or "unknown"


class StreamCopier:
    """Copies the packets of chosen streams of an input into an output.

    Args:
        source, path: the input and its file.
        target: the output; its header is not written yet.
        plan: what is copied.
        end_s: packets that an edit list hides behind this time are left out.
        max_packets: packets of the picture after which copying ends, for a trial; None is all. It
            goes on for a while when none of them stands alone.
    """

    def __init__(
        self,
        source: InputContainer,
        path: Path,
        target: OutputContainer,
        plan: CopyPlan,
        *,
        end_s: Fraction,
        max_packets: int | None = None,
    ) -> None:
        self._source, self._path, self._target = source, path, target
        self._plan, self._end_s, self._max_packets = plan, end_s, max_packets
        self._copies: dict[int, Stream] = {}
        self._packets: Iterator[av.Packet] | None = None
        self._next: av.Packet | None = None

    def add(self, indices: tuple[int, ...], *, is_sound_default: bool = True) -> None:
        """Adds streams to the output.

        Args:
            indices: some of the plan's.
            is_sound_default: whether a sound track may stay the one that is played.
        """
        for index in indices:
            original = self._source.streams[index]
            if is_cover(original) and self._target.format.name == "matroska":
                self._add_cover(original)
                continue
            copy = self._add(original, is_tagged=index in self._plan.tagged)
            copy.disposition = original.disposition
            if is_cover(original):
                # MP4 writers take a default one for a film.
                copy.disposition = COVER
            if original.type == "audio" and not is_sound_default:
                copy.disposition = original.disposition & ~Disposition.default
            copy.metadata.update(copied_tags(original.metadata, stale=STALE_STREAM_TAGS))
            if index == self._plan.streams[0]:
                copy.metadata.update(self._plan.tags)
            if original.type != "attachment":
                self._copies[index] = copy

    @property
    def pairs(self) -> list[tuple[Stream, Stream]]:
        """Streams of the input with their copies, but for those that are stored as attachments."""
        return [(self._source.streams[index], copy) for index, copy in self._copies.items()]

    def write_until(self, limit_s: Fraction | None) -> None:
        """Copies packets whose decoding time is before the limit; all when it is None."""
        if self._packets is None:
            self._packets = self._kept_packets()
            self._next = next(self._packets, None)
        while self._next is not None:
            packet = self._next
            stamp = packet.dts if packet.dts is not None else packet.pts
            if limit_s is not None and stamp is not None:
                if stamp * Fraction(packet.time_base) > limit_s:
                    return
            packet.stream = self._copies[packet.stream_index]
            self._target.mux_one(packet)
            self._next = next(self._packets, None)

    def _kept_packets(self) -> Iterator[av.Packet]:
        num_pictures, has_key = 0, False
        copied = [self._source.streams[index] for index in self._copies]
        for packet in packets(self._source, *copied):
            if packet.size == 0:
                continue
            if packet.pts is None and packet.dts is not None:
                packet.pts = packet.dts
            if packet.is_discard and packet.dts is not None:
                if packet.dts * Fraction(packet.time_base) >= self._end_s:
                    continue
            yield packet
            if packet.stream_index != self._plan.streams[0] or self._max_packets is None:
                continue
            num_pictures, has_key = num_pictures + 1, has_key or packet.is_keyframe
            if num_pictures >= self._max_packets * (1 if has_key else _MAX_TRIAL_FACTOR):
                return

    def _add(self, original: Stream, *, is_tagged: bool) -> Stream:
        if original.type in ("data", "attachment"):
            if codec_of(original) == "unknown":
                # A MOV would get a track that says nothing of its data.
                raise ValueError("FFmpeg does not know what it is")
            return self._target.add_stream_from_template(original)
        rate = self._rate(original)
        stand_in = _STAND_INS[self._target.format.name][original.type]
        copy = self._target.add_mux_stream(stand_in, rate=rate)
        if original.codec_context is None:
            BitStreamFilterContext("null", original, copy)
        else:
            with av.open(io.BytesIO(), "w", format="null") as scratch:
                draft = scratch.add_stream_from_template(original, opaque=True)
                # Matroska gives most codecs none.
                tag = original.codec_context.codec_tag if is_tagged else _NO_TAG
                if tag == _NO_TAG and family(self._target) == "mov" and _has_hevc_header(original):
                    # FFmpeg's own choice is hev1, which Apple's players refuse.
                    tag = "hvc1"
                if tag != _NO_TAG:
                    draft.codec_context.codec_tag = tag
                if original.type == "video" and original.sample_aspect_ratio:
                    draft.codec_context.sample_aspect_ratio = original.sample_aspect_ratio
                scratch.start_encoding()
                # A filter that changes nothing carries every parameter over, side data too.
                BitStreamFilterContext("null", draft, copy)
        copy.time_base = original.time_base
        if original.type == "video" and original.sample_aspect_ratio:
            _set_sample_aspect_ratio(copy, original.sample_aspect_ratio)
        return copy

    def _rate(self, original: Stream) -> Fraction | None:
        """Frames per second of a picture that has one rate, or whose timecode counts in it."""
        if original.type != "video" or not original.average_rate:
            return None
        is_constant = original.average_rate == original.base_rate
        return original.average_rate if is_constant or self._plan.tags else None

    def _add_cover(self, original: Stream) -> None:
        """Matroska keeps the picture that stands for a file among its attachments."""
        if codec_of(original) not in _COVER_NAMES:
            raise ValueError(f"a cover of {codec_of(original)} has no known media type")
        name, media_type = _COVER_NAMES[codec_of(original)]
        with open_input(self._path) as container:
            stored = packets(container, container.streams[original.index])
            data = next((bytes(packet) for packet in stored if packet.size), b"")
        tags = original.metadata
        self._target.add_attachment(
            tags.get("filename", name), tags.get("mimetype", media_type), data
        )


def _has_hevc_header(stream: Stream) -> bool:
    """Whether it is HEVC whose parameter sets stand before the pictures."""
    header = (codec_of(stream) == "hevc" and stream.codec_context.extradata) or b""
    # ISO/IEC 14496-15, 8.3.2.1: byte 22 counts the kinds of parameter sets.
    is_record = len(header) > 23 and header[0] == 1 and header[22] > 0
    return is_record or header.startswith((b"\0\0\1", b"\0\0\0\1"))


def _is_timecode(stream: Stream) -> bool:
    return stream.type == "data" and stream.name is None and "timecode" in stream.metadata


def copied_tags(tags: dict[str, str], *, stale: set[str] = STALE_TAGS) -> dict[str, str]:
    """Metadata without what describes the old file only."""
    return {key: value for key, value in tags.items() if key.lower() not in stale}


def _set_sample_aspect_ratio(stream: VideoStream, ratio: Fraction) -> None:
    """Says the shape of a pixel to the muxer: Matroska's display size and MP4's track size.

    PyAV sets it for the codec only, so this writes into FFmpeg's own structure. It does so only in
    the version that it knows, and where the structure holds what PyAV says of it.
    """
    is_known = av.library_versions["libavformat"][0] == 62 and type(stream).__basicsize__ >= 64
    pointer = ctypes.c_uint64.from_address(id(stream) + _POINTER).value if is_known else 0
    if pointer:
        index = ctypes.c_int.from_address(pointer + _INDEX).value
        unit = (ctypes.c_int * 2).from_address(pointer + _TIME_BASE)
        if index == stream.index and stream.time_base == Fraction(unit[0], unit[1] or 1):
            shape = (ctypes.c_int * 2).from_address(pointer + _SAMPLE_ASPECT_RATIO)
            shape[0], shape[1] = ratio.numerator, ratio.denominator
            return
    log.warning("this PyAV (%s) cannot keep the shape of pixels, %s", av.__version__, ratio)
