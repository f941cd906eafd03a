"""Writes pictures to a small video file; for the demo clip, tests and tools."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from spatial_v2a.conditioning.media import open_output

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
