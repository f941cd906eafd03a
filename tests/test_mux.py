"""Muxing: the picture bit by bit as it was, sound as long as the picture, all or nothing."""

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.errors import UserError
from spatial_v2a.files import check_writable, written_whole
from spatial_v2a.inference.dub.jobs import default_name, plan_jobs
from spatial_v2a.inference.dub.mux import open_sink
from spatial_v2a.timing import TIMING

NTSC = Fraction(30_000, 1001)
AAC_FRAME = 1024


def write_clip(path: Path, *, fps: Fraction | int = 24, num_frames: int = 40, **kwargs) -> Path:
    shades = ((np.full((32, 48, 3), 5 * n % 250, np.uint8)) for n in range(num_frames))
    write_video(path, shades, fps, **kwargs)
    return path


def packets(path: Path) -> list[tuple]:
    """(pts in s, dts in s, hash of the bytes) of every video packet."""
    with av.open(str(path)) as container:
        return [
            (p.pts * p.time_base, p.dts * p.time_base, hashlib.sha256(bytes(p)).hexdigest())
            for p in container.demux(video=0)
            if p.size
        ]


def decoded_sound(path: Path) -> tuple[Fraction, np.ndarray]:
    """(time of the first sample, sound [2, L] in -1..1)."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        assert (track.rate, track.channels) == (TIMING.sample_rate_hz, 2)
        frames = list(container.decode(track))
    values = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    if len(values) == 1:
        values = values.reshape(-1, 2).T
    if values.dtype == np.int32:
        values = values / 2**31
    return frames[0].pts * frames[0].time_base, values


def test_sound(num_samples: int) -> np.ndarray:
    time_s = np.arange(num_samples) / TIMING.sample_rate_hz
    left = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    return np.stack([left, 0.1 * left], axis=-1).astype(np.float32)


test_sound.__test__ = False


def dub(source_path: Path, out: Path) -> np.ndarray:
    """Muxes a known tone tick by tick, the last tick reaching past the end; returns the tone."""
    source = open_video(source_path)
    step = TIMING.samples_per_tick
    audio_LC = test_sound(source.num_ticks * step)
    with open_sink(out, source) as sink:
        for start in range(0, len(audio_LC), step):
            sink.write(audio_LC[start : start + step])
    return audio_LC[: source.num_samples]


@pytest.mark.parametrize(
    ("name", "fps", "tolerance"),
    [
        ("a.mp4", 16, 5e-3),
        ("a.mp4", NTSC, 5e-3),
        ("a.mov", 60, 5e-3),
        ("a.m4v", 24, 5e-3),
        ("a.mkv", NTSC, 1e-6),
        ("a.webm", 24, 5e-3),
    ],
    ids=["mp4_16", "mp4_29.97", "mov_60", "m4v_24", "mkv_29.97", "webm_24"],
)
def test_picture_is_copied_and_sound_has_its_length(tmp_path, name, fps, tolerance) -> None:
    clip = write_clip(tmp_path / name, fps=fps)
    out = tmp_path / f"out-{name}"
    tone_LC = dub(clip, out)
    assert packets(clip) == packets(out)
    start_s, sound_CL = decoded_sound(out)
    extra = sound_CL.shape[1] - len(tone_LC)
    assert start_s == 0 and 0 <= extra < AAC_FRAME, (start_s, extra)
    both = sound_CL[:, : len(tone_LC)].T - tone_LC
    # Codecs need a moment at the hard edges; only a lossless one is exact there.
    inner = both if tolerance < 1e-5 else both[8000:-3000]
    error = float(np.sqrt(np.square(inner).mean()))
    # One sample of shift would make an error of 0.014.
    assert error < tolerance, error


def test_the_track_length_in_the_header_is_the_pictures(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", fps=NTSC)
    dub(clip, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        picture_s = video.duration * video.time_base
        assert abs(sound.duration * sound.time_base - picture_s) < Fraction(1, 20_000)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sound_alone(tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / "a.mp4", fps=NTSC)
    tone_LC = dub(clip, tmp_path / f"a{suffix}")
    sound_LC, rate_hz = soundfile.read(tmp_path / f"a{suffix}")
    assert rate_hz == TIMING.sample_rate_hz and sound_LC.shape == tone_LC.shape
    assert np.abs(sound_LC - tone_LC).max() < 1e-6


def test_a_late_start_keeps_sound_and_picture_together(tmp_path: Path) -> None:
    times = [Fraction(1, 2) + Fraction(n, 25) for n in range(25)]
    clip = write_clip(
        tmp_path / "late.mkv", fps=None, num_frames=25, times_s=times, end_s=Fraction(3, 2)
    )
    dub(clip, tmp_path / "out.mkv")
    start_s, _ = decoded_sound(tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv")[0][0] == start_s == Fraction(1, 2)


def copy_with_more(clip: Path, rich: Path) -> None:
    """`clip` with a mono sound track, a title, a chapter and (in Matroska) an attached file."""
    with av.open(str(clip)) as source, av.open(str(rich), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        voice = target.add_stream("aac", rate=44_100, layout="mono")
        if rich.suffix == ".mkv":
            target.add_attachment("note.txt", "text/plain", b"a note")
        target.metadata["title"] = "Two words"
        second = Fraction(1, 1)
        one = {"id": 1, "start": 0, "end": 1, "time_base": second, "metadata": {"title": "one"}}
        target.set_chapters([one])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 44_100, 0
        sound = [*voice.encode(frame), *voice.encode(None)]
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
        target.mux(sound)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_everything_but_the_old_sound_stays(tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / "plain.mp4", rotation_deg=90)
    rich, out = tmp_path / f"rich{suffix}", tmp_path / f"out{suffix}"
    copy_with_more(clip, rich)
    dub(rich, out)
    assert packets(rich) == packets(out)
    with av.open(str(out)) as container:
        assert container.metadata["title"] == "Two words"
        assert [c["metadata"]["title"] for c in container.chapters()] == ["one"]
        assert len(container.streams.audio) == 1
        assert len(container.streams.attachments) == (suffix == ".mkv")
        assert next(container.decode(video=0)).rotation == 90
    assert decoded_sound(out)[1].shape[0] == 2


def test_a_container_that_cannot_hold_the_picture_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"\.webm file cannot hold the h264 video"):
        plan_jobs([clip], out=tmp_path / "a.webm")


def test_default_names() -> None:
    assert default_name(Path("x/clip.MOV")) == "clip.dubbed.MOV"
    assert default_name(Path("clip.avi")) == "clip.dubbed.mkv"


def test_nothing_is_left_after_an_error_or_ctrl_c(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    source = open_video(clip)
    for error in (RuntimeError, KeyboardInterrupt):
        with (
            pytest.raises(error),
            written_whole(out, overwrite=True) as partial,
            open_sink(partial, source) as sink,
        ):
            sink.write(test_sound(TIMING.samples_per_tick))
            assert partial.exists() and partial.parent.parent == out.parent
            raise error
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "out.mp4"]
        assert out.read_bytes() == b"old"


def test_check_writable(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    check_writable(tmp_path / "new", overwrite=False)
    check_writable(tmp_path / "there", overwrite=True)
    for path, words in (
        (tmp_path / "there", "exists"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.mp4", "does not exist"),
        (tmp_path / "there" / "x.mp4", "is not a folder"),
        (Path("/proc/x.mp4"), "cannot write into"),
    ):
        with pytest.raises(UserError, match=words):
            check_writable(path, overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
