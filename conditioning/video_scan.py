"""Reads a video's packets once, without decoding: the picture's exact extent, or a refusal."""

import math
from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from spatial_v2a.conditioning.media import MAX_PIXELS, is_cover, open_input, packets
from spatial_v2a.errors import UserError

# Containers whose header states the length; elsewhere FFmpeg only estimates it.
FORMATS_WITH_LENGTH = ("mov", "matroska", "avi")
# A file that ends this much before the length in its header is cut off.
MAX_MISSING_S = Fraction(1, 4)
# Beyond these a damaged time is far more likely than a picture that somebody wants sound for.
MAX_LENGTH_S, MAX_HELD_S = 24 * 3600, 300
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
