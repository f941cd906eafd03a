"""`SpatialV2A.dub`, the command as one Python call, and the sound of the README's eight lines."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_v2a import Config, SpatialV2A, UserError
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.inference.cli import dub as dub_command
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dub_video import dub_video
from spatial_v2a.inference.marking.reading import read_provenance
from tests.test_dub_says import given_file
from tests.tiny_checkpoint import write_tiny_checkpoint

# Of the command, what one call on one video with a loaded model has no use for.
ONLY_OF_THE_COMMAND = {
    "videos", "checkpoint", "device", "skip_existing", "jobs", "as_json", "fov",
    "detector_weights",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SpatialV2A:
    return SpatialV2A.from_pretrained(checkpoint)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (15, 48, 64, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", frames, 30)
    return tmp_path / "clip.mp4"


def test_it_has_the_options_of_the_command() -> None:
    call = inspect.signature(SpatialV2A.dub).parameters
    command = set(inspect.signature(dub_command.dub).parameters) - ONLY_OF_THE_COMMAND
    assert set(call) - {"self", "video", "fov_deg", "on_tick"} == command
    kinds = {name: parameter.kind for name, parameter in call.items()}
    named = {name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(call) - named == {"self", "video", "out"}
    assert list(inspect.signature(dub_video).parameters)[3:] == [n for n in call if n in named]


def test_it_writes_what_the_command_writes(clip: Path, checkpoint: Path, model) -> None:
    ticks: list[int] = []
    out, again = clip.with_name("call.wav"), clip.with_name("command.wav")
    result = model.dub(str(clip), str(out), seed=3, nfe=1, on_tick=ticks.append)
    assert result.out == out and result.takes[0].files == (out,)
    assert result.duration_s == 0.5 and ticks == list(range(1, 16))
    words = [clip, "-o", again, "--checkpoint", checkpoint, "--seed", 3, "--nfe", 1]
    assert run(["dub", *map(str, words)]) == 0
    one, two = (soundfile.read(path)[0] for path in (out, again))
    assert one.any() and np.array_equal(one, two)
    report = read_provenance(out)
    assert report is not None and report.provenance is not None
    assert report.provenance.command == "SpatialV2A.dub"


def test_objects_are_moved_and_a_range_is_made_again(clip: Path, model) -> None:
    given = given_file(clip.parent)
    options = {"nfe": 1, "annotations": given, "overwrite": True, "watermark": False}
    still, moved = clip.with_name("still.wav"), clip.with_name("moved.wav")
    result = model.dub(clip, still, **options)
    assert result.objects.classes[0].class_name == "bell"
    model.dub(clip, moved, move={1: -20.0}, **options)
    assert not np.array_equal(soundfile.read(still)[0], soundfile.read(moved)[0])
    redone = model.dub(clip, nfe=1, seed=9, redo=(0.1, 0.4), previous=still,
                       out=clip.with_name("again.wav"))  # fmt: skip
    old, new = soundfile.read(still)[0], soundfile.read(redone.out)[0]
    assert np.array_equal(old[: int(0.1 * 48_000)], new[: int(0.1 * 48_000)])
    assert not np.array_equal(old, new)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nfe": 0}, "nfe=0"),
        ({"takes": 99}, "takes=99"),
        ({"original": "loud"}, "original='loud'"),
        ({"without": "depth"}, "without takes several"),
        ({"objects": "here"}, "objects here"),
        ({"fov_deg": 180.0}, "field of view 180"),
        ({"detector": "rtdetr"}, "from_pretrained"),
        ({"mute": [1]}, "--annotations"),
        ({"redo": (0.1, 0.4), "takes": 2}, "takes does not go with redo"),
        ({"previous": "x.mp4"}, "belongs to redo"),
    ],
)
def test_bad_options_are_refused(clip: Path, model, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model.dub(clip, **options)
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]


def test_a_file_that_exists_stays(clip: Path, model) -> None:
    there = clip.with_name("clip.dubbed.mp4")
    there.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists"):
        model.dub(clip, nfe=1)
    assert there.read_bytes() == b"mine"


def test_a_model_without_a_folder_is_refused(clip: Path, tiny_config: Config) -> None:
    with pytest.raises(UserError, match="no checkpoint folder"):
        SpatialV2A(tiny_config).dub(clip)


def test_the_eight_lines_make_the_sound_that_a_dub_makes(clip: Path, model) -> None:
    """Same seed, same samples, twice; and those of a dub of the same file, to 24 bits."""

    def heard() -> np.ndarray:
        with model.stream(seed=7) as stream:
            return np.concatenate([stream.push(image) for image in open_video(clip).ticks()])

    sound_LC = heard()
    assert np.array_equal(sound_LC, heard())
    out = clip.with_name("dub.wav")
    result = model.dub(clip, out, seed=7, watermark=False)
    written_LC, _ = soundfile.read(result.out, dtype="float32")
    assert np.abs(sound_LC).max() > 1e-4, "the random model is silent, the test says nothing"
    assert np.abs(sound_LC - written_LC).max() <= 2**-23
