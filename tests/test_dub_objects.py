"""`dub --objects`: apart and together, with one object and two, in takes and in a redo."""

import json
import shutil
from dataclasses import replace
from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_v2a import Config
from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.conditioning.weights import FILE_OF
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import DubJob, DubOptions, plan_jobs
from spatial_v2a.inference.dub.redo import redo
from spatial_v2a.inference.dub.redo_plan import plan_redo
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.reading import read_provenance
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import find_checkpoint, read_config
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import shaken, write_tiny_checkpoint

STEP = TIMING.samples_per_tick
NUM_TICKS = 30
SECOND_COMES_TICK = 12
# PyTorch alone rounds a batch of streams otherwise than one stream.
ROUNDING = 1e-4


@pytest.fixture(scope="module", autouse=True)
def no_openvino():
    """It would compile longer than these moments take to hear."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    """A tiny random model behind the bundled perception, which knows what the demo clip shows."""
    bundled = find_checkpoint("stage")
    config = tiny_config.model_copy(update={"perception": read_config(bundled).perception})
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shaken(SpatialV2A(config)).save_pretrained(folder, card="Random weights for tests.")
    for name in set(FILE_OF.values()):
        if (bundled / name).is_file():
            shutil.copy(bundled / name, folder)
    return folder


@pytest.fixture(scope="module")
def dubbers(checkpoint: Path) -> dict[str, Dubber]:
    return {
        objects: Dubber(
            checkpoint, settings=EngineSettings(seed=2, nfe=1), device="cpu", objects=objects
        )
        for objects in ("apart", "together")
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A clip in which one object is detected."""
    path = tmp_path_factory.mktemp("one") / "clip.mp4"
    write_video(path, demo_images(), TIMING.tick_hz)
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The same picture beside its mirror image: two objects."""
    path = tmp_path_factory.mktemp("two") / "clip.mp4"
    write_video(path, (np.hstack([i, i[:, ::-1]]) for i in demo_images()), TIMING.tick_hz)
    return path


def demo_images() -> list[np.ndarray]:
    demo = resources.files("spatial_v2a") / "bundled" / "demo" / "clip.mp4"
    return list(islice(open_video(Path(str(demo))).ticks(), NUM_TICKS))


def write_given(folder: Path, *, second_comes_tick: int = SECOND_COMES_TICK) -> Path:
    """One object on the left, and from a tick on another on the right."""
    lines = []
    for tick in range(NUM_TICKS):
        boxes = [{"id": 1, "class": CLASS_NAMES[0], "x": 0.1, "y": 0.3, "w": 0.2, "h": 0.4}]
        if tick >= second_comes_tick:
            boxes += [{"id": 5, "class": CLASS_NAMES[1], "x": 0.7, "y": 0.3, "w": 0.2, "h": 0.4}]
        lines.append(json.dumps({"t": tick / TIMING.tick_hz, "boxes": boxes}))
    path = folder / "given.jsonl"
    path.write_text("\n".join(lines))
    return path


def sounds(
    dubber: Dubber, clip: Path, folder: Path, *, given: Path | None = None, takes: int = 1
) -> list[np.ndarray]:
    """The sound of every take; its 24 bits and nothing else are between it and the engine."""
    folder.mkdir(exist_ok=True)
    options = DubOptions(watermark=False, provenance=False, takes=takes)
    (job,) = plan_jobs(
        [clip], out=folder / "o.wav", overwrite=True, annotations=given, options=options
    )
    return [soundfile.read(take.out, dtype="float32")[0] for take in dubber.dub(job).takes]


def test_from_the_second_object_on_they_differ(tmp_path, dubbers, one) -> None:
    given = write_given(tmp_path)
    (apart,), (together,) = (
        sounds(dubbers[name], one, tmp_path / name, given=given) for name in ("apart", "together")
    )
    start = SECOND_COMES_TICK * STEP
    assert np.abs(together[:start]).max() > 1e-3, "the random model is silent"
    assert np.abs((apart - together)[:start]).max() < ROUNDING
    assert np.abs((apart - together)[start:]).max() > 1e-2


def test_with_one_object_they_are_the_same(tmp_path, dubbers, one) -> None:
    (apart,), (together,) = (
        sounds(dubbers[name], one, tmp_path / name) for name in ("apart", "together")
    )
    assert np.abs(together).max() > 1e-3, "the random model is silent"
    assert np.abs(apart - together).max() < ROUNDING


def test_who_sees_no_boxes_hears_together(tmp_path, checkpoint, one) -> None:
    settings = EngineSettings(seed=2, nfe=1, without=("boxes",))
    given = write_given(tmp_path, second_comes_tick=0)
    (apart,), (together,) = (
        sounds(
            Dubber(checkpoint, settings=settings, device="cpu", objects=name),
            one,
            tmp_path / name,
            given=given,
        )
        for name in ("apart", "together")
    )
    assert np.array_equal(apart, together)


def test_a_take_is_the_dub_with_its_seed(tmp_path, dubbers, checkpoint, one) -> None:
    given = write_given(tmp_path)
    takes = sounds(dubbers["apart"], one, tmp_path / "takes", given=given, takes=2)
    for number, heard in enumerate(takes):
        settings = EngineSettings(seed=2 + number, nfe=1)
        dubber = Dubber(checkpoint, settings=settings, device="cpu")
        (alone,) = sounds(dubber, one, tmp_path / str(number), given=given)
        error = np.abs(heard - alone).max()
        assert error < ROUNDING, f"take {number} differs by {error:.2g}"
    assert np.abs(takes[0] - takes[1]).max() > 1e-2


def redone(dubber: Dubber, clip: Path, previous: Path, out: Path) -> np.ndarray:
    options = DubOptions(watermark=False)
    plan = plan_redo(clip, "0.4-0.8", previous=previous, out=out, overwrite=True, options=options)
    return soundfile.read(redo(dubber, plan).out, dtype="float32")[0]


def test_a_redo_hears_as_a_dub_does(tmp_path, dubbers, one, two) -> None:
    differences = {}
    for name, clip in (("one", one), ("two", two)):
        (job,) = plan_jobs(
            [clip], out=tmp_path / f"{name}.wav", options=DubOptions(watermark=False)
        )
        dubbers["apart"].dub(job)
        old = soundfile.read(job.out, dtype="float32")[0]
        apart, together = (
            redone(dubbers[objects], clip, job.out, tmp_path / f"{name}-{objects}.wav")
            for objects in ("apart", "together")
        )
        outside = np.r_[0 : round(0.4 * 48000), round(0.8 * 48000) : len(old)]
        assert np.array_equal(apart[outside], old[outside])
        assert np.abs(apart - old).max() > 1e-3, "nothing is new"
        differences[name] = np.abs(apart - together).max()
    assert differences["one"] < ROUNDING < 1e-3 < differences["two"], differences


class TimeMachine(Dubber):
    """A dubber that can state what dubs stated before objects were heard apart."""

    is_old = False

    def origin(self, job: DubJob, *arguments, **more) -> Provenance | None:
        origin = super().origin(job, *arguments, **more)
        if origin is None or not self.is_old:
            return origin
        settings = {name: value for name, value in origin.settings.items() if name != "objects"}
        return replace(origin, settings=settings)


def stated(path: Path) -> str:
    report = read_provenance(path)
    assert report is not None and report.provenance is not None
    return report.provenance.settings["objects"]


def test_a_redo_takes_over_how_objects_were_heard(tmp_path, tiny_config, capsys) -> None:
    checkpoint, clip = write_tiny_checkpoint(tmp_path / "tiny", tiny_config), tmp_path / "clip.mp4"
    write_video(clip, (np.full((32, 48, 3), 5 * n, np.uint8) for n in range(20)), 30)
    dubber = TimeMachine(checkpoint, settings=EngineSettings(nfe=1), device="cpu")

    def told_by(name: str, **options: bool) -> str | None:
        (job,) = plan_jobs([clip], out=tmp_path / name, options=DubOptions(**options))
        dubber.dub(job)
        plan = plan_redo(
            clip, "0.2-0.5", previous=job.out, out=None, overwrite=False, options=DubOptions()
        )
        return plan.objects

    assert told_by("first.wav") == stated(tmp_path / "first.wav") == "apart"
    assert told_by("unsigned.wav", provenance=False) is None
    dubber.objects = "together"
    assert told_by("second.wav") == stated(tmp_path / "second.wav") == "together"
    dubber.is_old = True
    assert told_by("old.wav") == "together"

    words = ["dub", str(clip), "--checkpoint", str(checkpoint), "--nfe", "1", "--redo", "0.2-0.5"]
    for previous, more, expected in (
        ("old.wav", [], "together"),
        ("old.wav", ["--objects", "apart"], "apart"),
        ("unsigned.wav", [], "apart"),
    ):
        out = tmp_path / "new.wav"
        command = [*words, "--previous", str(tmp_path / previous), "-o", str(out), "--overwrite"]
        assert run([*command, *more]) == 0, capsys.readouterr().err
        assert stated(out) == expected, (previous, more)


def test_an_unknown_way_is_one_line(tmp_path, checkpoint, one, capsys) -> None:
    words = ["dub", str(one), "--objects", "alone", "--checkpoint", str(checkpoint)]
    assert run(words) == 2
    assert "'alone' is not one of 'apart', 'together'" in capsys.readouterr().err
    with pytest.raises(UserError, match="objects alone is unknown; use apart or together"):
        Dubber(checkpoint, device="cpu", objects="alone")
