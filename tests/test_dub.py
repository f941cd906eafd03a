"""Dubbing whole files with a tiny random model: length, causality, seeds, reports, CLI words."""

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spatial_v2a import Config
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.dub.pan_report import PanReport
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import write_tiny_checkpoint

NTSC = Fraction(30_000, 1001)
RATES = pytest.mark.parametrize(
    "fps", [16, 24, NTSC, 60, None], ids=["16", "24", "29.97", "60", "variable"]
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def dubber(checkpoint: Path) -> Dubber:
    return Dubber(checkpoint, settings=EngineSettings(seed=2, nfe=1), device="cpu")


def write_clip(path: Path, *, fps=24, length_s: int = 1, event_s: int | None = None) -> Path:
    """A grey clip; from `event_s` on a bright rectangle stands on the left."""
    if fps is None:
        random = np.random.default_rng(0)
        times = [Fraction(0)]
        while times[-1] < length_s:
            times.append(times[-1] + Fraction(int(random.integers(4, 90)), 1000))
    else:
        times = [n / Fraction(fps) for n in range(round(length_s * fps))]

    def frames():
        for time_s in times:
            image = np.full((48, 64, 3), 90, np.uint8)
            if event_s is not None and time_s >= event_s:
                image[8:40, 4:28] = 250
            yield image

    end_s = times[-1] + (Fraction(1, 40) if fps is None else 1 / Fraction(fps))
    # Lossless, so that the encoder cannot spread the event to earlier frames.
    write_video(path, frames(), fps, times_s=times, end_s=end_s, crf=0)
    return path


def dub_to_wav(dubber: Dubber, clip: Path) -> np.ndarray:
    out = clip.with_suffix(".wav")
    # The watermark's filters reach 5 ms ahead; the model must not.
    options = DubOptions(watermark=False)
    (job,) = plan_jobs([clip], out=out, overwrite=True, options=options)
    dubber.dub(job)
    return soundfile.read(out, dtype="float32")[0]


@RATES
def test_sound_has_the_pictures_length_at_every_rate(tmp_path: Path, dubber, fps) -> None:
    clip = write_clip(tmp_path / "clip.mp4", fps=fps)
    sound_LC = dub_to_wav(dubber, clip)
    assert len(sound_LC) == TIMING.num_samples(open_video(clip).duration)
    assert np.abs(sound_LC).max() > 1e-4, "the random model is silent, the test says nothing"


@pytest.mark.parametrize("fps", [24, None], ids=["24", "variable"])
def test_an_event_at_seven_seconds_sounds_at_seven_seconds(tmp_path: Path, dubber, fps) -> None:
    """Samples before tick 210 are bit-identical with and without the event, later ones differ."""
    calm = dub_to_wav(dubber, write_clip(tmp_path / "calm.mp4", fps=fps, length_s=8))
    event = dub_to_wav(dubber, write_clip(tmp_path / "e.mp4", fps=fps, length_s=8, event_s=7))
    first = int(np.flatnonzero((calm != event).any(axis=1))[0]) // TIMING.samples_per_tick
    latest = 210 if fps == 24 else 213
    assert 210 <= first <= latest, f"the event is first heard at tick {first}"


def test_same_seed_same_samples(tmp_path: Path, dubber: Dubber, checkpoint: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    first = dub_to_wav(dubber, clip)
    assert np.array_equal(first, dub_to_wav(dubber, clip)), "the dubber remembers the last file"
    fresh = Dubber(checkpoint, settings=EngineSettings(seed=2, nfe=1), device="cpu")
    assert np.array_equal(first, dub_to_wav(fresh, clip))
    other = Dubber(checkpoint, settings=EngineSettings(seed=3, nfe=1), device="cpu")
    assert not np.array_equal(first, dub_to_wav(other, clip))


def test_given_geometry_changes_the_sound_and_may_end_early(tmp_path: Path, dubber) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    given = tmp_path / "given.jsonl"
    box = {"id": 1, "class": _any_class(), "x": 0.1, "y": 0.3, "w": 0.2, "h": 0.4}
    lines = [{"t": n / 30, "fov_deg": 90, "boxes": [box]} for n in range(10)]
    given.write_text("\n".join(json.dumps(line) for line in lines))
    plain = dub_to_wav(dubber, clip)
    out = tmp_path / "given.wav"
    (job,) = plan_jobs([clip], out=out, annotations=given, report=True)
    dubber.dub(job)
    assert not np.array_equal(plain, soundfile.read(out, dtype="float32")[0])
    assert job.report is not None and job.report.name == "given.pan.png"


@pytest.mark.parametrize(
    "sources",
    [
        "null",
        "5",
        '"abc"',
        "[5]",
        '[{"id": 1}]',
        '[{"azimuth_deg": "left"}]',
        '[{"azimuth_deg": 1e300}]',
    ],
)
def test_other_words_in_given_geometry_do_not_end_the_pan_picture(
    sources: str, tmp_path: Path, tiny_config: Config
) -> None:
    """Its true positions are optional, so whatever stands there is."""
    path = tmp_path / "given.jsonl"
    path.write_text('{"t": 0, "boxes": [], "sources": ' + sources + "}\n")
    report = PanReport(tiny_config.perception, is_annotated=True, truth=path)
    report.draw(tmp_path / "pan.png", np.ones((3, 3)), title="clip")
    assert (tmp_path / "pan.png").read_bytes().startswith(b"\x89PNG")


def test_command_writes_video_and_pan_picture_and_says_so(
    tmp_path: Path, checkpoint: Path, capsys
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", fps=NTSC)
    code = run(["dub", str(clip), "--checkpoint", str(checkpoint), "--report", "--nfe", "1"])
    said = capsys.readouterr().out
    assert code == 0
    out = tmp_path / "clip.dubbed.mp4"
    assert re.search(r"wrote .*clip\.dubbed\.mp4\n", said)
    assert re.search(r"\d x real time; per tick p50 [\d.]+ ms, p95 [\d.]+ ms\n", said)
    assert re.search(r"stereo: side .* left \d+%, centre \d+%, right \d+%", said)
    with av.open(str(out)) as container:
        track = container.streams.audio[0]
        assert (track.rate, track.channels) == (TIMING.sample_rate_hz, 2)
    assert (tmp_path / "clip.dubbed.pan.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clip.dubbed.mp4", "clip.dubbed.pan.png", "clip.mp4"]


def test_several_videos_into_a_folder(tmp_path: Path, checkpoint: Path) -> None:
    clips = [write_clip(tmp_path / name) for name in ("a.mp4", "b.mkv")]
    folder = tmp_path / "out"
    folder.mkdir()
    words = ["dub", *map(str, clips), "-o", str(folder), "--checkpoint", str(checkpoint)]
    assert run([*words, "--nfe", "1", "--without", "depth", "--without", "boxes"]) == 0
    made = ["a.dubbed.mp4", "b.dubbed.mkv"]
    assert sorted(p.name for p in folder.iterdir()) == made


def test_a_dub_that_is_stopped_leaves_nothing(tmp_path: Path, dubber: Dubber) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    (job,) = plan_jobs([clip], report=True)

    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dubber.dub(job, on_tick=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def _any_class() -> str:
    from spatial_v2a.concepts import CLASS_NAMES

    return CLASS_NAMES[0]
