"""Small media files with faults of their own, made bit by bit."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from spatial_v2a.conditioning.video import write_video

RATE_HZ = 48_000
# Eight channels as QuickTime orders them; FFmpeg has the pair of the sides and of the back swapped.
MOV_ORDER = ("FL", "FR", "FC", "LFE", "SL", "SR", "BL", "BR")
MOV_LAYOUT = (128 << 16 | 8).to_bytes(4, "big")


def shades(num: int, size: tuple[int, int] = (32, 48)):
    """Grey frames of changing brightness."""
    return (np.full((*size, 3), 40 + 5 * n % 200, np.uint8) for n in range(num))


def write_ts(path: Path, *, num_frames: int = 30, with_sound: bool = True) -> Path:
    """A transport stream of one second at 30 fps with AAC sound."""
    with av.open(str(path), "w", format="mpegts") as container:
        picture = container.add_stream("mpeg2video", rate=30)
        picture.height, picture.width, picture.pix_fmt = 32, 48, "yuv420p"
        if with_sound:
            sound = container.add_stream("aac", rate=RATE_HZ, layout="mono")
            for start in range(0, num_frames * RATE_HZ // 30, 1024):
                time_L = np.arange(start, start + 1024) / RATE_HZ
                tone = 0.1 * np.sin(2 * np.pi * 440 * time_L).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = RATE_HZ, start
                frame.time_base = Fraction(1, RATE_HZ)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        for image in shades(num_frames):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(picture.encode(None))
    return path


def write_surround_mov(path: Path, *, seconds: float = 0.5) -> Path:
    """A MOV whose 7.1 sound has channels in QuickTime's order: channel n is a tone of n 100 Hz.

    FFmpeg writes no such order, so its tag is put in place of the bitmap of channels.
    """
    num = round(seconds * RATE_HZ)
    time_L = np.arange(num) / RATE_HZ
    sound_LC = np.stack([np.sin(2 * np.pi * 100 * n * time_L) for n in range(1, 9)], axis=-1)
    silent = path.with_suffix(".silent.mov")
    write_video(silent, shades(round(30 * seconds)), 30)
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        track = target.add_stream("pcm_s16le", rate=RATE_HZ, layout="7.1")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
        steps = np.rint(3000 * sound_LC).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(steps, format="s16", layout="7.1")
        frame.sample_rate, frame.pts = RATE_HZ, 0
        frame.time_base = Fraction(1, RATE_HZ)
        target.mux([*track.encode(frame), *track.encode(None)])
    silent.unlink()
    data = path.read_bytes()
    at = data.index(b"chan") + 8
    path.write_bytes(data[:at] + MOV_LAYOUT + bytes(4) + data[at + 8 :])
    return path
