"""Video files: their exact extent, their frames as ticks, causally by timestamps; small ones out.

Packets are read once, without decoding, before the first frame is: a file is measured or refused.
"""

import logging
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from spatial_v2a.conditioning.media import (
    MAX_PIXELS,
    decoded,
    is_cover,
    open_input,
    open_output,
    packets,
)
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING, Timing

log = logging.getLogger(__name__)

# Containers with a coarse clock (Matroska: 1 ms) round their stamps, up as well as down, so half a
# unit may be forgiven. A unit longer than this is a frame number, which is exact.
MAX_ROUNDING_UNIT_S = Fraction(1, 500)
# 8K; larger pictures are decoded one at a time.
MAX_THREADED_PIXELS = 2**25
# Containers whose header states the length; elsewhere FFmpeg only estimates it.
FORMATS_WITH_LENGTH = ("mov", "matroska", "avi")
# A file that ends this much before the length in its header is cut off.
MAX_MISSING_S = Fraction(1, 4)
# Beyond these a damaged time is far more likely than a picture that somebody wants sound for.
MIN_LENGTH_S, MAX_LENGTH_S, MAX_HELD_S = 1e-3, 24 * 3600, 300
NEW_TIMES = "ffmpeg -i IN -an -vf settb=1/30,setpts=N -r 30 OUT.mp4"


@dataclass(frozen=True)
class PictureExtent:
    """What the packets say of the first real video stream; times in seconds, exact.

    Attributes:
        start_s: presentation time of the first frame on the file's own clock.
        duration_s: last frame's time plus its duration, minus the first frame's time.
        num_frames: frames stored.
        time_base_s: unit of the timestamps.
        width, height: as stored, before rotation.
        has_times: False for a raw stream, whose times are only counted at an assumed rate.
    """

    start_s: Fraction
    duration_s: Fraction
    num_frames: int
    time_base_s: Fraction
    width: int
    height: int
    has_times: bool


def picture_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """The first video stream that is a picture in motion (cover art does not count)."""
    for stream in container.streams.video:
        if not is_cover(stream):
            return stream
    kind = "holds sound only" if container.streams.audio else "holds no picture"
    raise UserError(f"{path} {kind}; give a file with a video stream")


def scan_picture(path: str | Path) -> PictureExtent:
    """Measures the picture's start and length from its packets.

    Raises:
        UserError: missing, unreadable, cut off, without picture, or with no frame.
    """
    with open_input(path) as container:
        stream = picture_stream(container, path)
        if stream.codec_context is None:
            raise UserError(f"{path}: its picture has an unknown codec; convert it to H.264 first")
        picture, overall, stamps = _Span(), _Span(), array("q")
        try:
            for packet in packets(container):
                if packet.size == 0 or packet.is_discard:
                    continue
                overall.add(packet)
                if packet.stream_index == stream.index:
                    picture.add(packet)
                    stamp = _stamp(packet)
                    stamps.extend([] if stamp is None else [stamp])
        except av.error.FFmpegError as error:
            raise _cut_off(path, picture.end_s) from error
        width, height = stream.codec_context.width, stream.codec_context.height
        if picture.count == 0 or width == 0:
            raise UserError(f"{path} has a video stream with no frame in it; record it again")
        if width * height > MAX_PIXELS:
            raise UserError(
                f"{path} has pictures of {width} x {height}, more than {MAX_PIXELS / 1e6:g} million"
                " pixels; scale it down first (ffmpeg -i IN -vf scale=3840:-2 OUT.mp4)"
            )
        if picture.is_last_corrupt or _is_cut_off(container, overall):
            raise _cut_off(path, picture.end_s)
        has_times = picture.start_s is not None
        picture.close(stream.guessed_rate or stream.average_rate)
        duration_s = picture.end_s - picture.start_s
        _check_times(path, picture, stamps, Fraction(stream.time_base))
        return PictureExtent(
            start_s=picture.start_s,
            duration_s=duration_s,
            num_frames=picture.count,
            time_base_s=Fraction(stream.time_base),
            width=width,
            height=height,
            has_times=has_times,
        )


class _Span:
    """Running extent of a set of packets."""

    def __init__(self) -> None:
        self.count = 0
        self.start_s: Fraction | None = None
        self.last_s = Fraction(0)
        self.last_duration_s = Fraction(0)
        self.gap_s = Fraction(0)
        self.is_last_corrupt = False

    @property
    def end_s(self) -> Fraction:
        return self.last_s + self.last_duration_s

    def add(self, packet: av.Packet) -> None:
        stamp = _stamp(packet)
        self.count += 1
        self.is_last_corrupt = packet.is_corrupt
        if stamp is None:
            return
        time_s = stamp * Fraction(packet.time_base)
        duration_s = (packet.duration or 0) * Fraction(packet.time_base)
        if self.start_s is None:
            self.start_s, self.last_s, self.last_duration_s = time_s, time_s, duration_s
            return
        self.start_s = min(self.start_s, time_s)
        if time_s > self.last_s:
            self.gap_s = time_s - self.last_s
            self.last_s, self.last_duration_s = time_s, duration_s
        elif time_s + duration_s > self.end_s:
            self.last_duration_s = time_s + duration_s - self.last_s

    def close(self, rate: Fraction | None) -> None:
        """Fills in what the container does not say: stamps of raw streams, the last duration."""
        frame_s = 1 / Fraction(rate) if rate else Fraction(1, 25)
        if self.start_s is None:
            self.start_s, self.last_s = Fraction(0), (self.count - 1) * frame_s
        if self.last_duration_s == 0:
            self.last_duration_s = frame_s if rate else self.gap_s or frame_s


def _stamp(packet: av.Packet) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts


def _check_times(path: str | Path, picture: _Span, stamps: array, unit_s: Fraction) -> None:
    """Refuses times that would mean work without end for a picture that hardly moves."""
    length_s = float(picture.end_s - picture.start_s)
    if length_s < MIN_LENGTH_S:
        raise UserError(
            f"{path} lasts {length_s:.1g} s by its times, which leaves no time for a sound; give it"
            f" new ones ({NEW_TIMES})"
        )
    if length_s > MAX_LENGTH_S:
        raise UserError(
            f"{path} lasts {length_s / 3600:,.0f} hours by its times, and a day is the most; cut"
            f" it, or if its times are damaged, give it new ones ({NEW_TIMES})"
        )
    times_s = np.sort(np.array(stamps, np.float64)) * float(unit_s)
    held_s = np.diff(np.append(times_s, float(picture.end_s)))
    if held_s.max(initial=0.0) > MAX_HELD_S:
        longest = int(held_s.argmax())
        raise UserError(
            f"{path} holds one picture for {held_s[longest]:,.0f} s from {times_s[longest]:.1f} s"
            f" on, and {MAX_HELD_S} s is the most; if that is right, repeat it (ffmpeg -i IN -vf"
            f" fps=30 OUT.mp4), else give it new times ({NEW_TIMES})"
        )


def _is_cut_off(container: InputContainer, overall: _Span) -> bool:
    has_length = container.format.name.split(",")[0] in FORMATS_WITH_LENGTH
    if not has_length or not container.duration or overall.start_s is None:
        return False
    stated_s = Fraction(container.duration, av.time_base)
    # Matroska counts its length from zero, MP4 from the first packet.
    found_s = max(overall.end_s, overall.end_s - overall.start_s)
    return found_s + MAX_MISSING_S < stated_s


def _cut_off(path: str | Path, end_s: Fraction) -> UserError:
    seconds = math.floor(float(end_s) * 10) / 10
    return UserError(
        f"{path} is cut off: its data end at about {seconds:g} s, before the length in its header;"
        " copy it again, or cut it cleanly (e.g. remux the part that plays)"
    )


Item = TypeVar("Item")


def causal_ticks(
    timed_items: Iterable[tuple[Fraction, Item]],
    *,
    num_ticks: int,
    timing: Timing,
    tolerance_s: Fraction = Fraction(0),
) -> Iterator[Item]:
    """Yields one item per tick: at tick n the newest one with time <= n / tick_hz.

    The last item is held to the end. Should the first item come late, it also stands for the ticks
    before it (a player shows it there too). Items are pulled one ahead and never kept.

    Args:
        timed_items: (time in seconds from the start, item) in order of time; read lazily.
        num_ticks: ticks to produce.
        timing: the clock.
        tolerance_s: how much later than the tick a time may read; for timestamps which a container
            rounded to its own unit, half of that unit.

    Raises:
        ValueError: there is no item at all.
    """
    items = iter(timed_items)
    upcoming = next(items, None)
    if upcoming is None:
        raise ValueError("nothing to resample: there is no item")
    current = upcoming[1]
    for tick in range(num_ticks):
        limit_s = timing.tick_time_s(tick) + tolerance_s
        while upcoming is not None and upcoming[0] <= limit_s:
            current = upcoming[1]
            upcoming = next(items, None)
        yield current
    # The rest is read too, so that the reader can notice an early end of its file.
    for _ in items:
        pass


@dataclass(frozen=True)
class VideoSource:
    """A checked video file; frames are decoded anew by each call of `ticks`.

    Attributes:
        path: the file.
        extent: exact start and length of its picture.
        timing: the clocks.
    """

    path: Path
    extent: PictureExtent
    timing: Timing

    @property
    def duration(self) -> Fraction:
        """Length of the picture in seconds, exact."""
        return self.extent.duration_s

    @property
    def num_ticks(self) -> int:
        """Ticks that cover the picture; the last may be partial."""
        return self.timing.num_ticks(self.duration)

    @property
    def num_samples(self) -> int:
        """Audio samples per channel for exactly the picture's length."""
        return self.timing.num_samples(self.duration)

    def ticks(self, *, max_width: int | None = None) -> Iterator[np.ndarray]:
        """Yields uint8 RGB [height, width, 3] per tick: the newest frame with pts <= tick time.

        A held frame is the same array again (do not write to it). Few frames are in memory.

        Args:
            max_width: frames stored wider than this are scaled down to it, keeping their shape.

        Raises:
            UserError: no frame can be decoded, or decoding stops clearly before the end.
        """
        shown: av.VideoFrame | None = None
        image = np.empty(0, np.uint8)
        matrix: bytes | None = None
        unit_s = self.extent.time_base_s
        for frame in causal_ticks(
            self._timed_frames(),
            num_ticks=self.num_ticks,
            timing=self.timing,
            tolerance_s=unit_s / 2 if unit_s <= MAX_ROUNDING_UNIT_S else Fraction(0),
        ):
            if shown is None:
                matrix = display_matrix(frame)
            if frame is not shown:
                shown, image = frame, to_rgb(frame, matrix=matrix, max_width=max_width)
            yield image

    def _timed_frames(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decoded frames with their times from the picture's start."""
        num_bad, end_s = 0, None
        with open_input(self.path) as container:
            stream = picture_stream(container, self.path)
            # Every thread holds a picture.
            is_large = self.extent.width * self.extent.height > MAX_THREADED_PIXELS
            stream.thread_type = "SLICE" if is_large else "AUTO"
            frame_s = self.duration / self.extent.num_frames
            for frame in decoded(container, stream):
                if frame is None:
                    num_bad += 1
                    continue
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is not None:
                    time_s = stamp * Fraction(frame.time_base) - self.extent.start_s
                else:
                    time_s = Fraction(0) if end_s is None else end_s
                end_s = time_s + frame_s
                yield time_s, frame
        if num_bad:
            log.warning(
                "%s: %d damaged packets skipped; the last picture is held", self.path, num_bad
            )
        if end_s is None:
            raise UserError(f"{self.path}: none of its frames can be decoded; convert it to H.264")
        if end_s + max(MAX_MISSING_S, 4 * frame_s) < self.duration and num_bad:
            raise UserError(
                f"{self.path}: decoding stops at {float(end_s):.1f} s of {float(self.duration):.1f}"
                " s, the rest is damaged; copy it again or cut it there"
            )


def open_video(path: str | Path, *, timing: Timing = TIMING) -> VideoSource:
    """Checks a video file and measures its picture exactly (reads packets, decodes nothing).

    Raises:
        UserError: missing, unreadable, cut off, sound only, or without frames.
    """
    return VideoSource(path=Path(path), extent=scan_picture(path), timing=timing)


def display_matrix(frame: av.VideoFrame) -> bytes | None:
    """The frame's display matrix (36 bytes, see `apply_display_matrix`), or None without one.

    Ask once a stream, not once a frame: a frame whose side data was read is part of a reference
    cycle, which lives on until the collector comes by (PyAV 18). It is a tiny copy here, for whole
    pictures would pile up.
    """
    small = frame.reformat(width=16, height=16, format="gray", threads=1)
    matrix = small.side_data.get(SideDataType.DISPLAYMATRIX)
    return None if matrix is None else bytes(matrix)


def to_rgb(
    frame: av.VideoFrame, *, matrix: bytes | None = None, max_width: int | None = None
) -> np.ndarray:
    """A decoded frame as the viewer sees it: scaled, then turned by its display matrix.

    Returns:
        uint8 RGB [height, width, 3], contiguous.
    """
    width, height = frame.width, frame.height
    if max_width is not None and width > max_width:
        width, height = max_width, max(1, round(height * max_width / width))
    # On one thread: starting others for a picture takes longer than scaling it.
    rgb = frame.reformat(
        width=width, height=height, format="rgb24", interpolation="AREA", threads=1
    )
    image = rgb.to_ndarray()
    return image if matrix is None else np.ascontiguousarray(apply_display_matrix(image, matrix))


def apply_display_matrix(image_HWC: np.ndarray, matrix: bytes) -> np.ndarray:
    """Turns or flips a picture by quarter turns.

    Args:
        image_HWC: the stored picture.
        matrix: nine little-endian int32 [a b u, c d v, x y w] of the ISO base media file format,
            section 6.2.2: a stored point (p, q) is displayed at (a p + c q + x, b p + d q + y).
    """
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        flip_x, flip_y = a < 0, d < 0
    else:
        image_HWC = image_HWC.swapaxes(0, 1)
        flip_x, flip_y = c < 0, b < 0
    return image_HWC[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


# Fine enough to hold any common frame time exactly: 16, 24, 25, 30, 60 and 30000/1001.
TIME_BASE_S = Fraction(1, 240_000)


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: Fraction | int | None = None,
    *,
    times_s: Iterable[Fraction] | None = None,
    end_s: Fraction | None = None,
    rotation_deg: int = 0,
    crf: int = 20,
) -> None:
    """Encodes frames as H.264 (MPEG-4 part 2 where x264 is not built in).

    Args:
        path: output; its suffix chooses the container.
        frames: uint8 RGB [height, width, 3] with even sides, all of one size; read lazily.
        fps: frames per second; None for a variable rate, which needs `times_s`.
        times_s: time of each frame; the default is n / fps.
        end_s: for a variable rate, where the last frame ends.
        rotation_deg: display rotation written beside the picture, counterclockwise.
        crf: x264 quality, lower is better.
    """
    if fps is None and times_s is None:
        raise ValueError("write_video needs fps or times_s")
    rate = Fraction(fps) if fps is not None else Fraction(30)
    times = iter(times_s) if times_s is not None else (n / rate for n in range(2**62))
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if Path(path).suffix == ".webm":
        codec = "libvpx"
    with open_output(Path(path)) as container:
        stream = container.add_stream(codec, rate=rate if fps is not None else None)
        # Without reordered frames each stored duration is also the displayed one, and AVI,
        # which has no presentation times, stays right.
        stream.options = {"threads": "1", "bf": "0"}
        if codec == "libx264":
            stream.options |= {"crf": str(crf), "preset": "veryfast"}
        stream.time_base = stream.codec_context.time_base = TIME_BASE_S
        packets = _encoded(stream, frames, times, rate, end_s, rotation_deg)
        for packet in packets:
            container.mux(packet)


def _encoded(stream, frames, times, rate, end_s, rotation_deg):
    """Encoded packets; each frame's duration reaches to the next one."""
    pending, durations = None, {}
    for image in frames:
        time_s = next(times)
        if pending is None:
            stream.height, stream.width = image.shape[:2]
            stream.pix_fmt = "yuv420p"
            if rotation_deg:
                stream.set_display_rotation(rotation_deg)
        else:
            yield from _encode(stream, *pending, time_s, durations)
        pending = (image, time_s)
    if pending is not None:
        last_s = end_s if end_s is not None else pending[1] + 1 / rate
        yield from _encode(stream, *pending, last_s, durations)
        yield from _timed(stream.encode(None), durations)


def _encode(stream, image, time_s, next_s, durations):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.time_base = TIME_BASE_S
    frame.pts = round(time_s / TIME_BASE_S)
    frame.duration = durations[frame.pts] = round(next_s / TIME_BASE_S) - frame.pts
    return _timed(stream.encode(frame), durations)


def _timed(packets, durations):
    """Encoders forget how long a frame stays; the muxer needs it for the last one."""
    for packet in packets:
        packet.duration = durations.pop(packet.pts, packet.duration)
        yield packet
