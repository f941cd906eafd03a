"""Media files, opened in one way for reading and in one for writing; names are never interpreted.

FFmpeg takes a name for a protocol (`tcp:x.mp4`), a pattern (`x%03d.png`) or a list, and a list
opens what it names. Here it gets an open file and may open nothing else.
"""

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.format import Flags
from av.stream import Disposition, Stream

from spatial_v2a.errors import UserError

# What people record and exchange. Left out: whatever names other files (hls, concat, sdp, image2,
# ...), devices, single pictures, and headerless or old formats that a damaged file is taken for.
FORMATS = (
    "aac", "ac3", "aiff", "amr", "ape", "apng", "asf", "au", "av1", "avi", "avs2", "avs3", "caf",
    "cavsvideo", "dhav", "dirac", "dnxhd", "dts", "dtshd", "dv", "eac3", "evc", "flac", "flv",
    "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf", "loas", "m4v", "matroska", "mjpeg",
    "mlp", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mpegvideo", "mpjpeg", "mxf", "nsv",
    "nut", "obu", "ogg", "pva", "rm", "swf", "tak", "truehd", "tta", "vc1", "voc", "vvc", "w64",
    "wav", "webm", "wtv", "wv", "yuv4mpegpipe",
)  # fmt: skip
# More than any camera records; a decoder needs some 20 bytes a pixel.
MAX_PIXELS = 100_000_000
# Files that stand for other files, by how they begin.
LISTS = {
    re.compile(rb"#EXTM3U"): "an HLS playlist",
    re.compile(rb"ffconcat version"): "an FFmpeg list of files",
    re.compile(rb"v=0\s+o="): "a session description (SDP)",
    re.compile(rb"(<\?xml.*?)?<MPD\b", re.S): "a DASH manifest",
    re.compile(rb"(<\?xml.*?)?<SmoothStreamingMedia\b", re.S): "a streaming manifest",
}
# Without them FFmpeg itself opens no session description.
PROTOCOLS = "file,crypto,data,http,https,tcp,tls,udp,rtp"
HEAD_BYTES = 4096
BUFFER_BYTES = 2**17
# In this order FFmpeg stores channels; a file with another one is reordered.
CHANNEL_ORDER = (
    "FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR",
    "TBL", "TBC", "TBR", "WL", "WR", "SDL", "SDR", "LFE2", "TSL", "TSR", "BFC", "BFL", "BFR",
)  # fmt: skip
# A clock that steps back by more than the first, or ahead by more than the second, began again.
MAX_STEP_BACK_S, MAX_STEP_AHEAD_S = Fraction(1, 10), 10


@contextmanager
def open_input(path: str | Path, *, kind: str = "video file") -> Iterator[InputContainer]:
    """Opens a media file; what cannot be opened is a UserError that says which `kind` is wanted."""
    with open_container(path, kind=kind) as container:
        yield container


def open_container(path: str | Path, *, kind: str = "video file") -> InputContainer:
    """As `open_input`, for those who close the container themselves.

    Metadata that is no UTF-8 comes with its bytes escaped, and `open_output` writes them back.

    Raises:
        UserError: missing, no regular file, a list of other files, or not readable.
    """
    path = Path(path)
    file = _open_file(path, kind)
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": ",".join(FORMATS),
        "max_pixels": str(MAX_PIXELS),
    }
    try:
        container = av.open(
            file,
            "r",
            options=options,
            metadata_errors="surrogateescape",
            buffer_size=BUFFER_BYTES,
        )
    except av.error.EOFError as error:
        raise UserError(f"{path} ends before its first frame; record or copy it again") from error
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"{path} is not a readable {kind} ({_reason(error)}); if it was cut off while it was"
            " copied or recorded, copy it again or repair it, e.g. by remuxing"
        ) from error
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def open_output(
    target: Path | BinaryIO, *, format: str | None = None, options: dict[str, str] | None = None
) -> OutputContainer:
    """Opens a media file for writing.

    Args:
        target: the file's name, or an open file.
        format: FFmpeg's name of the container; None takes the suffix.
        options: of the container.
    """
    return av.open(
        f"file:{target}" if isinstance(target, Path) else target,
        "w",
        format=format,
        container_options=options,
        metadata_errors="surrogateescape",
    )


def open_written(file: BinaryIO) -> InputContainer:
    """Opens what `open_output` has just written to memory."""
    return av.open(file, "r", metadata_errors="surrogateescape")


def packets(container: InputContainer, *streams: Stream) -> Iterator[av.Packet]:
    """Packets of some streams (all of them without), on one clock that goes on.

    Where the clock of a transport stream begins again or jumps, what follows is moved to continue
    what was there. All streams are read whichever are wanted, so the moves are always the same.

    Raises:
        UserError: the disk fails. FFmpegError: the container is damaged.
    """
    wanted = {stream.index for stream in streams or container.streams}
    clock = _Clock() if container.format.flags & Flags.ts_discont.value else None
    try:
        for packet in container.demux():
            if clock is not None and packet.size:
                clock.correct(packet)
            # The empty packets at the end, which flush decoders, have no `stream_index`.
            if packet.stream.index in wanted:
                yield packet
    except av.error.FFmpegError:
        raise
    except OSError as error:
        raise UserError(f"reading failed ({_reason(error)}); check the disk, copy it") from error


def decoded(container: InputContainer, stream: Stream) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Decoded frames of a stream in order; None for each packet that cannot be decoded.

    Sound comes in FFmpeg's order of channels. Once a container, for the decoder is told of it.

    Raises:
        UserError: the disk fails, or a decoder gives channels in an order of its own.
    """
    order = _channel_order(stream) if stream.type == "audio" else None
    source = packets(container, stream)
    while True:
        try:
            packet = next(source, None)
        except av.error.FFmpegError:
            # The end of a damaged container: what was read stands, the caller checks the length.
            yield None
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            yield None
            continue
        if stream.type == "audio":
            _check_layouts(frames, container)
        yield from (
            frames
            if order is None
            else (_reordered(frame, order, layout=frame.layout) for frame in frames)
        )


def num_channels(stream: av.AudioStream) -> int:
    """Channels of a sound track that is not decoded from this container.

    To be asked for here alone: `stream.channels` and `stream.layout` end the process where a file
    has an order of channels of its own, for PyAV 18.1 frees the list of them twice.
    """
    _channel_order(stream)
    return stream.codec_context.layout.nb_channels


def with_left_right(frame: av.AudioFrame) -> av.AudioFrame:
    """A frame that can be resampled to stereo: of channels that nobody knows, the first two."""
    is_known = any(channel.name not in ("", "NONE") for channel in frame.layout.channels)
    if is_known or frame.layout.nb_channels <= 2:
        return frame
    return _reordered(frame, [0, 1], layout="stereo")


def is_cover(stream: Stream) -> bool:
    """Whether a video stream is cover art and not a picture in motion."""
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


class _File(io.FileIO):
    """A file whose name says no more than its suffix, which helps to tell formats apart."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        suffix = path.suffix.lower()
        self.name = f"media{suffix}" if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else "media"

    def __del__(self) -> None:
        # The container that reads it is its only owner.
        self.close()


def _open_file(path: Path, kind: str) -> _File:
    try:
        _check_kind(path, path.stat(), kind)
        file = _File(path)
        head = file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(_missing(path)) from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read; check its permissions") from error
    except (OSError, ValueError) as error:
        is_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
        remedy = "give it a shorter name" if is_long else "check the path"
        raise UserError(f"{path} cannot be read ({_reason(error)}); {remedy}") from error
    for pattern, what in LISTS.items():
        if pattern.match(head):
            raise UserError(
                f"{path} is {what}, and the files that it names are not opened; name one of them,"
                f" or join them first (ffmpeg -protocol_whitelist {PROTOCOLS} -i {path.name}"
                " -c copy joined.mkv)"
            )
    return file


def _check_kind(path: Path, status: os.stat_result, kind: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder; name one {kind} in it")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{path} is {_kind_of(status.st_mode)}, and what it holds is read more than once; write"
            " it to a file first (cat PIPE > FILE)"
        )
    if status.st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); copy or record it again")


def _missing(path: Path) -> str:
    if str(path) == "-":
        return "stdin (-) is read by `live --source -` only; write it to a file (cat > FILE)"
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(path)):
        return f"no such file: {path}; download it first, or use `live --source` for an address"
    return f"no such file: {path}; check the path"


def _kind_of(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


class _Clock:
    """Moves what comes after a new beginning of the clock to where the last one ended.

    Streams reach a new beginning one after another: the first one fixes by how much all move.
    """

    def __init__(self) -> None:
        self._moves_s = [Fraction(0)]
        self._current: dict[int, int] = {}
        self._offsets_s: dict[int, Fraction] = {}
        self._ends_s: dict[int, Fraction] = {}

    def correct(self, packet: av.Packet) -> None:
        """Moves a packet's times."""
        index, unit_s = packet.stream_index, Fraction(packet.time_base)
        is_timed = packet.stream.type in ("audio", "video") and packet.dts is not None
        if is_timed:
            self._follow(index, packet.dts * unit_s)
        offset_s = self._offsets_s.get(index, self._moves_s[-1])
        if offset_s:
            offset = round(offset_s / unit_s)
            packet.pts = None if packet.pts is None else packet.pts + offset
            packet.dts = None if packet.dts is None else packet.dts + offset
        if is_timed:
            self._ends_s[index] = (packet.dts + (packet.duration or 0)) * unit_s

    def _follow(self, index: int, stored_s: Fraction) -> None:
        """Finds the offset of a stream for a packet with this stored time."""
        end_s = self._ends_s.get(index)
        if end_s is None:
            self._current[index] = len(self._moves_s) - 1
            self._offsets_s[index] = self._moves_s[-1]
            return
        if not self._has_jumped(index, stored_s + self._offsets_s[index] - end_s, end_s):
            return
        number = self._current[index] + 1
        if number == len(self._moves_s):
            self._moves_s.append(end_s - stored_s)
        # A stream that ended later than the first one to jump must not go back.
        self._offsets_s[index] = max(self._moves_s[number], end_s - stored_s)
        self._current[index] = number

    def _has_jumped(self, index: int, step_s: Fraction, end_s: Fraction) -> bool:
        if step_s < -MAX_STEP_BACK_S:
            return True
        # A stream that is missing for a while comes back to where the others are.
        others = (end for other, end in self._ends_s.items() if other != index)
        return step_s > MAX_STEP_AHEAD_S and max(others, default=end_s) < end_s + step_s / 2


def _channel_order(stream: av.AudioStream) -> list[int] | None:
    """Where FFmpeg's channels stand in a track with an order of its own; None for all others.

    The decoder is set to FFmpeg's order of these channels, or to so many unknown ones. Reading the
    layout takes the list of channels out of the decoder's hands: it must get another layout at
    once, or both would free the list.
    """
    context = stream.codec_context
    layout = context.layout
    if not _is_own_order(layout):
        return None
    names = [channel.name for channel in layout.channels]
    known = [name for name in CHANNEL_ORDER if name in names]
    if len(known) == len(names):
        context.layout = av.AudioLayout("+".join(known))
        return [names.index(name) for name in known]
    context.layout = av.AudioLayout(f"{len(names)} channels")
    return None


def _is_own_order(layout: av.AudioLayout) -> bool:
    return " channels (" in layout.name


_kept_layouts: list[av.AudioLayout] = []


def _check_layouts(frames: list[av.AudioFrame], container: InputContainer) -> None:
    own = [frame.layout for frame in frames if _is_own_order(frame.layout)]
    if own:
        # Never freed: the frames free the same lists of channels.
        _kept_layouts.extend(own)
        raise UserError(
            f"the sound has channels in an order of its own ({own[0].name}), which cannot be read;"
            " convert it first (ffmpeg -i IN -c:v copy -c:a flac -ac 2 OUT.mkv)"
        )


def _reordered(
    frame: av.AudioFrame, order: list[int], *, layout: av.AudioLayout | str
) -> av.AudioFrame:
    """The channels at these places, as a frame of a layout."""
    values = frame.to_ndarray()
    if frame.format.is_planar:
        values = values[order]
    else:
        values = values.reshape(frame.samples, -1)[:, order].reshape(1, -1)
    moved = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(values), format=frame.format.name, layout=layout
    )
    moved.sample_rate, moved.pts, moved.time_base = frame.sample_rate, frame.pts, frame.time_base
    return moved


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
