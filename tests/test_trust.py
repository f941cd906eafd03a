"""What a stranger has made runs nothing: names of shards, weights that a configuration names."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from spatial_v2a import Config
from spatial_v2a.bounded import read_arrays
from spatial_v2a.clip import Clip, clip_to_sample, read_shards
from spatial_v2a.conditioning.encoders import build_dino
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.conditioning.yolo import build_yolo11, load_published_yolo11
from spatial_v2a.config import load_config
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.evaluation.clips import read_metadata
from spatial_v2a.model import SpatialV2A
from spatial_v2a.timing import TIMING
from spatial_v2a.training.shards import ShardIndex
from tests.evaluation_clips import make_sample, write_shard
from tests.tiny_checkpoint import write_tiny_checkpoint

PROGRAM = Path(sys.executable).with_name("spatial-v2a")
# What webdataset, fsspec and shells take for more than a name.
NAMES = [
    "x::pipe:touch PWNED #.tar",
    "pipe:touch PWNED #.tar",
    "a{0..3}.tar",
    "s3::x.tar",
    "file:x.tar",
    "$(touch PWNED).tar",
    "a b#c?d=e.tar",
    "two\nlines.tar",
    "-x.tar",
]


class Runs:
    """An object whose unpickling runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def sample() -> dict:
    return make_sample("walkers-1", np.linspace(-20, 20, 12))


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture
def checkpoint(tmp_path: Path, whole_checkpoint: Path) -> Path:
    """A sound checkpoint that a test may change."""
    return Path(shutil.copytree(whole_checkpoint, tmp_path / "tiny"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, np.zeros((4, 48, 64, 3), np.uint8), 30)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_shard_is_a_name(
    name: str, sample: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every reader. `evaluate --data DIR` ran the command in such a name (2026-12-01)."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "data" / "plain.tar", [sample])
    (tmp_path / "data" / "plain.tar").rename(tmp_path / "data" / name)
    for path in (tmp_path / "data" / name, Path("data") / name):
        assert [clip.key for clip in read_shards([path])] == ["walkers-1"]
        assert [meta["key"] for meta in read_metadata([path])] == ["walkers-1"]
    index = ShardIndex([tmp_path / "data"])
    assert index.keys == ["walkers-1"] and index.meta("walkers-1")["num_ticks"] == 12
    os.chdir(tmp_path / "data")
    assert [clip.key for clip in read_shards([name])] == ["walkers-1"]
    assert not list(tmp_path.rglob("PWNED"))


def test_evaluate_runs_nothing_that_a_shard_is_called(sample: dict, tmp_path: Path) -> None:
    """The whole command, in a shell, in the folder where the file would appear."""
    write_shard(tmp_path / "data" / "plain.tar", [sample])
    # What stands before the `::` was opened first, and had to be there.
    shutil.copy(tmp_path / "data" / "plain.tar", tmp_path / "data" / "x")
    (tmp_path / "data" / "plain.tar").rename(tmp_path / "data" / NAMES[0])
    (tmp_path / "sounds").mkdir()
    silence_LC = np.zeros((12 * TIMING.samples_per_tick, 2), np.float32)
    soundfile.write(tmp_path / "sounds" / "walkers-1.wav", silence_LC, TIMING.sample_rate_hz)
    command = f"'{PROGRAM}' evaluate --data data --audio sounds --out out --jobs 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert not (tmp_path / "PWNED").exists(), "the name of a file was run"
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../escape.json", "no name KEY.PART"),
        ("..", "no name KEY.PART"),
        (".hidden.json", "no name KEY.PART"),
        ("x" * 300 + ".json", "no name KEY.PART"),
        ("a\\b.json", "no name KEY.PART"),
    ],
    ids=["up", "dots", "hidden", "long", "backslash"],
)
def test_the_key_of_a_clip_is_a_name(name: str, words: str, tmp_path: Path) -> None:
    """Files are made under it."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("/".join(["deep", name]) if name == ".." else name))
    if name == "../escape.json":
        # Folders in a name are left out: no key leads anywhere.
        assert ShardIndex([tmp_path]).keys == ["escape"]
        return
    with pytest.raises(UserError, match=words):
        ShardIndex([tmp_path])


def _sparse(path: Path) -> None:
    """A member that claims a terabyte of zeros."""
    member = tarfile.TarInfo("a.json")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    with path.open("wb") as file:
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"20000000000\0"
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
        file.write(bytes(header) + bytes(1024))


def _cut(path: Path) -> None:
    member = tarfile.TarInfo("a.json")
    member.size = 10_000
    path.write_bytes(member.tobuf() + b"{}")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(100)),
        lambda path: path.write_bytes(b"no archive" * 100),
        _sparse,
        _cut,
    ],
    ids=["folder", "pipe", "empty", "gzip", "text", "sparse", "cut"],
)
def test_what_is_no_shard_is_refused_in_one_line(make, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    make(path)
    for read in (read_shards, read_metadata):
        with pytest.raises(UserError) as caught:
            list(read([path]))
        assert "\n" not in str(caught.value) and "bad.tar" in str(caught.value)


def _npz(path: Path, **arrays: np.ndarray) -> bytes:
    np.savez_compressed(path, **arrays)
    return path.read_bytes()


def test_arrays_run_nothing_and_do_not_swell(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Runs("touch PWNED")], dtype=object)
    with pytest.raises(UserError, match="objects, which can run code"):
        read_arrays(_npz(tmp_path / "a.npz", x=objects), where="a")
    assert not (tmp_path / "PWNED").exists()
    bomb = _npz(tmp_path / "b.npz", **{f"x{i}": np.zeros(2**27, np.uint8) for i in range(9)})
    with pytest.raises(UserError, match="too many bytes"):
        read_arrays(bomb, where="b")
    lie = _npz(tmp_path / "c.npz", x=np.zeros(4, np.uint8))
    with zipfile.ZipFile(io.BytesIO(lie)) as file:
        npy = file.read("x.npy").replace(b"(4,), ", b"(9,), ")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("x.npy", npy)
    with pytest.raises(UserError, match="corrupt"):
        read_arrays(tmp_path / "d.npz", where="d")


@pytest.mark.parametrize(
    "change",
    [
        {"num_ticks": 10**9},
        {"num_ticks": 3},
        {"key": "../../up"},
        {"fov_deg": 1e9},
        {"ticks": None},
        {"sources": [{"id": 1, "stem": 7}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_metadata_of_a_clip_is_checked(change: dict, sample: dict) -> None:
    meta = json.loads(sample["json"]) | change
    with pytest.raises(UserError, match="metadata of clip a"):
        _ = Clip("a", sample | {"json": json.dumps(meta).encode()}).meta


def test_a_picture_of_a_clip_is_a_jpeg(sample: dict) -> None:
    """Other formats have readers of their own: PostScript is run."""
    meta = json.loads(sample["json"])
    made = clip_to_sample(
        meta,
        jpegs=[b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"] * 12,
        depth_THW=np.zeros((12, 60, 80), np.uint8),
        audio_LC=np.zeros((12 * 1600, 2), np.float32),
    )
    with pytest.raises(UserError, match="is no JPEG"):
        Clip("a", made).frame(0)


def write_config(folder: Path, **changes: object) -> None:
    """Sets values in a checkpoint's configuration, by their paths with __ between."""
    path = folder / "config.yaml"
    data = yaml.safe_load(path.read_text())
    for where, value in changes.items():
        *sections, key = where.split("__")
        section = data
        for name in sections:
            section = section[name]
        section[key] = value
    path.write_text(yaml.safe_dump(data))


@pytest.mark.parametrize("part", ["dino", "depth", "detector", "rtdetr"])
@pytest.mark.parametrize(
    "source",
    ["weights.pt", "./weights.pt", "sub/weights.pt", "{here}/weights.pt", "https://h.invalid/w.pt",
     "yolo11n.pt", "../up", "file:///etc", "a/b/c", "a/b\nc", ""],
)  # fmt: skip
def test_a_checkpoint_names_no_file(
    part: str, source: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle that `perception.detector.source` named was run by `dub --checkpoint DIR`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for place in (tmp_path, tmp_path / "sub"):
        torch.save({"model": Runs("touch PWNED")}, place / "weights.pt")
    boxes_from = "rtdetr" if part == "rtdetr" else "yolo"
    write_config(
        checkpoint,
        **{f"perception__{part}__source": source.format(here=tmp_path)},
        perception__boxes_from=boxes_from,
    )
    with pytest.raises(UserError) as caught:
        model = SpatialV2A.from_pretrained(checkpoint)
        Perception.from_checkpoint(checkpoint, model.config.perception)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("PWNED"))


def test_dub_runs_no_pickle_that_a_checkpoint_names(
    checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    """The whole command, in a shell, in the folder where the file would appear."""
    torch.save({"model": Runs("touch PWNED")}, tmp_path / "weights.pt")
    write_config(checkpoint, perception__detector__source="weights.pt")
    command = f"'{PROGRAM}' dub clip.mp4 --checkpoint tiny"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert not (tmp_path / "PWNED").exists(), "a pickle was run"
    assert done.returncode == 2, done.stderr
    assert "perception.detector.source" in done.stderr and "--detector-weights" in done.stderr


def test_a_hub_id_is_looked_up_in_the_cache_and_never_taken_for_a_folder(
    checkpoint: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would prefer a folder owner/name of the working directory to the hub."""
    monkeypatch.chdir(tmp_path)
    build_dino(tiny_config.perception.dino).save_pretrained(tmp_path / "owner" / "name")
    write_config(checkpoint, perception__dino__source="owner/name")
    config = load_config(checkpoint).perception
    with pytest.raises(UserError, match="hf download owner/name$"):
        Perception.from_checkpoint(checkpoint, config, cues=["dino"])


@pytest.fixture
def yolo_pt(tmp_path: Path, tiny_config: Config) -> Path:
    """A YOLO11 file as ultralytics writes it."""
    config = tiny_config.perception
    path = tmp_path / "it's mine.pt"
    model = build_yolo11(config.detector, num_classes=config.num_classes)
    torch.save({"model": model, "ema": None, "train_args": {}}, path)
    return path


def test_a_users_own_detector_is_loaded(
    yolo_pt: Path, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    wanted = torch.load(yolo_pt, weights_only=False)["model"].state_dict()
    loaded = load_published_yolo11(yolo_pt).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())
    arguments = ["--checkpoint", str(checkpoint), "--detector-weights", str(yolo_pt)]
    assert run(["dub", str(clip), *arguments]) == 0
    assert (tmp_path / "clip.dubbed.mp4").is_file()


def test_a_users_own_detector_runs_no_code_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate([{"model": Runs("touch PWNED")}, Runs("touch PWNED")]):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        with pytest.raises(UserError, match="no YOLO11 that can be opened safely"):
            load_published_yolo11(path)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Runs("touch PWNED")))
    with pytest.raises(UserError):
        load_published_yolo11(plain)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e28], ids=["nan", "inf", "1e28"])
@pytest.mark.parametrize(
    ("file", "prefix"),
    [("model", ""), ("perception", "dino."), ("perception", "depth."), ("detector-yolo", "")],
    ids=["model", "dino", "depth", "yolo"],
)
def test_weights_that_no_training_leaves_are_refused(
    file: str, prefix: str, value: float, checkpoint: Path
) -> None:
    """They gave a full-scale constant that was reported as silence, with exit code 0."""
    path = checkpoint / f"{file}.safetensors"
    tensors = load_file(path)
    names = [n for n in tensors if n.startswith(prefix) and tensors[n].is_floating_point()]
    tensors[names[-1]] = tensors[names[-1]].float()
    tensors[names[-1]].view(-1)[-1] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"{path}: tensor '{names[-1]}' holds a value"):
        model = SpatialV2A.from_pretrained(checkpoint)
        Perception.from_checkpoint(checkpoint, model.config.perception)


def test_a_variance_below_zero_is_refused(checkpoint: Path) -> None:
    """A detector of numbers that are none finds nothing, which sounds like silence."""
    path = checkpoint / "detector-yolo.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name] = -tensors[name] - 1
    save_file(tensors, path)
    config = load_config(checkpoint).perception
    with pytest.raises(UserError, match=f"{name}' holds a variance below zero"):
        Perception.from_checkpoint(checkpoint, config, cues=["boxes"])


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/y", "x/" * 3000 + "y"])
def test_a_name_that_is_too_long_is_one_line(name: str, clip: Path, capsys) -> None:
    for option, value in (
        ("--checkpoint", name), ("--detector", f"{name}/z"), ("--detector", f"{name}.pt")
    ):  # fmt: skip
        assert run(["dub", str(clip), option, value]) == 2
        assert capsys.readouterr().err.startswith("error: ")
