"""A capture as people have them: variable rate, sound tracks, subtitles, chapters, late sound."""

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from spatial_v2a.conditioning.video import write_video
from spatial_v2a.timing import TIMING

RATE_HZ = TIMING.sample_rate_hz
OFFSET_S = Fraction(6, 5)
SIZE = (48, 64)


def variable_times(length_s: float, *, seed: int = 0) -> list[Fraction]:
    """Times of frames 8 to 70 ms apart, in whole milliseconds as Matroska stores them."""
    random, times = np.random.default_rng(seed), [Fraction(0)]
    while times[-1] < length_s:
        times.append(times[-1] + Fraction(int(random.integers(8, 70)), 1000))
    return times[:-1]


def speech_like(length_s: float, *, from_s: float, to_s: float, level: float = 0.1) -> np.ndarray:
    """Noise in syllables between two times, float32 [L, 1]; else silence."""
    time_s = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
    noise_L = np.random.default_rng(3).standard_normal(len(time_s))
    syllables_L = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_s)
    inside_L = (time_s >= from_s) & (time_s < to_s)
    return (level * noise_L * syllables_L * inside_L)[:, None].astype(np.float32)


def write_capture(
    folder: Path,
    *,
    length_s: float = 4.0,
    name: str = "capture.mkv",
    speech: tuple[float, float] = (1.0, 2.0),
    frames: Iterator[np.ndarray] | None = None,
) -> Path:
    """Writes a Matroska file with all that a dub must keep.

    The first sound track is mono and silent but for `speech` (in its own time); both begin
    OFFSET_S after the picture.
    """
    silent, times = folder / "silent.mkv", variable_times(length_s)
    shown = frames or (np.full((*SIZE, 3), 5 * n % 250, np.uint8) for n in range(len(times)))
    write_video(silent, shown, None, times_s=times, end_s=Fraction(round(1000 * length_s), 1000))
    (folder / "lines.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,500\nfirst line\n\n2\n00:00:02,000 --> 00:00:03,000\nsecond\n"
    )
    sound_s = length_s - float(OFFSET_S)
    words = speech_like(sound_s, from_s=speech[0], to_s=speech[1])
    hum = 0.05 * np.sin(2 * np.pi * 220 * np.arange(len(words)) / RATE_HZ)
    music = np.stack([hum, -hum], axis=-1).astype(np.float32)
    capture = folder / name
    with (
        av.open(str(silent)) as video,
        av.open(str(folder / "lines.srt")) as lines,
        av.open(str(capture), "w") as target,
    ):
        picture = target.add_stream_from_template(video.streams.video[0])
        tracks = [_add_sound(target, "mono", "eng", "Game and voice"),
                  _add_sound(target, "stereo", "deu", "Music")]  # fmt: skip
        text = target.add_stream_from_template(lines.streams.subtitles[0])
        text.metadata["language"] = "eng"
        target.add_attachment("note.txt", "text/plain", b"a note")
        half = round(500 * length_s)
        target.set_chapters([
            {"id": 1, "start": 0, "end": half, "time_base": Fraction(1, 1000),
             "metadata": {"title": "one"}},
            {"id": 2, "start": half, "end": 2 * half, "time_base": Fraction(1, 1000),
             "metadata": {"title": "two"}},
        ])  # fmt: skip
        target.metadata["title"] = "a capture"
        packets = [p for p in video.demux(video=0) if p.size]
        for packet in packets:
            packet.stream = picture
        spoken = [p for p in lines.demux() if p.size]
        for packet in spoken:
            packet.stream = text
        for track, sound in zip(tracks, (words, music), strict=True):
            packets += _encoded(track, sound)
        for packet in sorted(packets + spoken, key=lambda p: p.dts * p.time_base):
            target.mux(packet)
    return capture


def picture_packets(path: Path) -> list[tuple[Fraction, str]]:
    """(pts in s from the first one, hash of the bytes) of every picture packet."""
    with av.open(str(path)) as container:
        found = [
            (p.pts * p.time_base, hashlib.sha256(bytes(p)).hexdigest())
            for p in container.demux(video=0)
            if p.size
        ]
    return [(time_s - found[0][0], digest) for time_s, digest in found]


def decoded(path: Path, track: int = 0) -> tuple[Fraction, np.ndarray]:
    """(time of the first sample in s, float64 [L, C]) of a sound track."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[track]
        resampler = av.AudioResampler(format="dblp", rate=RATE_HZ)
        pieces = [p for frame in container.decode(stream) for p in resampler.resample(frame)]
        pieces += resampler.resample(None)
    start_s = pieces[0].pts * Fraction(pieces[0].time_base)
    return start_s, np.concatenate([piece.to_ndarray() for piece in pieces], axis=1).T


def _add_sound(target, layout: str, language: str, title: str) -> av.AudioStream:
    stream = target.add_stream("flac", rate=RATE_HZ, layout=layout, format="s16")
    stream.time_base = Fraction(1, RATE_HZ)
    stream.metadata.update({"language": language, "title": title})
    return stream


def _encoded(stream, sound_LC: np.ndarray) -> list[av.Packet]:
    packets = []
    for start in range(0, len(sound_LC), 4096):
        steps = np.rint(np.clip(sound_LC[start : start + 4096], -1, 1) * 32767).astype(np.int16)
        layout = "mono" if steps.shape[1] == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(steps.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
        frame.pts = round(OFFSET_S * RATE_HZ) + start
        packets += stream.encode(frame)
    return packets + stream.encode(None)
