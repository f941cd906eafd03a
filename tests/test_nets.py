"""Nets for a refactor: what dub, stream(), live --fast and evaluate make of one object and of two.

tests/nets.npz holds every 40th sample of each sound. Where the processor and PyTorch are those it
was made with, the sound is the same to the sample; elsewhere it is the same to rounding. When a
sound is meant to change, make the file again and say in the commit what changed and why:

    .venv/bin/python -m tests.test_nets
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import torch

from spatial_v2a import SpatialV2A, load_config
from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.conditioning.weights import FILE_OF
from spatial_v2a.inference.cli.main import run
from spatial_v2a.models.checkpoint import find_checkpoint, read_config
from spatial_v2a.timing import TIMING
from tests.evaluation_clips import make_sample, write_shard
from tests.tiny_checkpoint import shaken

NETS = Path(__file__).with_name("nets.npz")
EVERY = 40
NUM_TICKS = 12
ROUNDING = 1e-3
SHOWN = ("one", "two")


def machine() -> str:
    """What the rounding of PyTorch depends on."""
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def make_checkpoint(folder: Path) -> Path:
    """A tiny random model behind the bundled perception, which knows what the demo clip shows."""
    bundled = find_checkpoint("stage")
    perception = read_config(bundled).perception
    config = load_config("tiny").model_copy(update={"perception": perception})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shaken(SpatialV2A(config))
    model.save_pretrained(folder, card="Random weights for tests.")
    for name in set(FILE_OF.values()):
        if (bundled / name).is_file():
            shutil.copy(bundled / name, folder)
    return folder


def pictures(shown: str) -> list[np.ndarray]:
    """The demo clip with one object; for two beside its mirror image."""
    demo = resources.files("spatial_v2a") / "bundled" / "demo" / "clip.mp4"
    images = list(islice(open_video(Path(str(demo))).ticks(), NUM_TICKS))
    return images if shown == "one" else [np.hstack([i, i[:, ::-1]]) for i in images]


def boxes_at(tick: int, shown: str) -> list[dict]:
    """One object that crosses to the right; for two another on the right from tick 4 on."""
    first = {"id": 1, "class": CLASS_NAMES[0], "x": 0.1 + 0.02 * tick, "y": 0.3, "w": 0.2, "h": 0.4}
    second = {"id": 5, "class": CLASS_NAMES[1], "x": 0.7, "y": 0.3, "w": 0.2, "h": 0.4}
    return [first, second] if shown == "two" and tick >= 4 else [first]


def write_inputs(folder: Path) -> Path:
    """Videos, given boxes and a shard of clips, all of both kinds."""
    clips = []
    for shown in SHOWN:
        images = pictures(shown)
        write_video(folder / f"{shown}.mp4", images, TIMING.tick_hz)
        boxes_T = [boxes_at(tick, shown) for tick in range(NUM_TICKS)]
        lines = [{"t": t / TIMING.tick_hz, "boxes": boxes} for t, boxes in enumerate(boxes_T)]
        (folder / f"{shown}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        frames = [cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA) for image in images]
        clip = make_sample(shown, np.linspace(30, -30, NUM_TICKS), frames=frames)
        meta = json.loads(clip["json"]) if isinstance(clip["json"], bytes | str) else clip["json"]
        for tick, boxes in zip(meta["ticks"], boxes_T, strict=True):
            tick["boxes"] = [box | {"nearness": 0.5} for box in boxes]
        clip["json"] = json.dumps(meta).encode() if isinstance(clip["json"], bytes) else meta
        clips.append(clip)
    write_shard(folder / "shards" / "000000.tar", clips)
    make_checkpoint(folder / "checkpoint")
    return folder


def ways(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Every way from a picture to its sound, float32 [L, 2]."""
    checkpoint = folder / "checkpoint"
    plain = ("--checkpoint", checkpoint, "--seed", 2, "--nfe", 1)
    unmarked = ("--no-watermark", "--no-provenance", "--overwrite")

    def dub(shown: str, *more: object) -> np.ndarray:
        out = folder / "dub.wav"
        command("dub", folder / f"{shown}.mp4", "-o", out, *plain, *unmarked, *more)
        return sound(out)

    def stream(shown: str) -> np.ndarray:
        with SpatialV2A.from_pretrained(checkpoint).stream(seed=2, nfe=1) as open_stream:
            ticks = open_video(folder / f"{shown}.mp4").ticks()
            return np.concatenate([open_stream.push(image_HWC) for image_HWC in ticks])

    def live(shown: str) -> np.ndarray:
        out = folder / "live.wav"
        source = folder / f"{shown}.mp4"
        command("live", "--source", source, "--sink", out, "--fast", *plain, *unmarked)
        return sound(out)

    def evaluated(shown: str, row: str) -> np.ndarray:
        out = folder / "report"
        if not out.exists():
            command("evaluate", "--data", folder / "shards", "--out", out, "--jobs", 1, *plain)
        (path,) = out.rglob(f"{row}/{shown}.wav")
        return sound(path)

    made: dict[str, Callable[[], np.ndarray]] = {}
    for shown in SHOWN:
        given = ("--annotations", folder / f"{shown}.jsonl")
        made |= {
            f"dub {shown}": lambda shown=shown: dub(shown),
            f"dub given {shown}": lambda shown=shown, given=given: dub(shown, *given),
            f"stream {shown}": lambda shown=shown: stream(shown),
            f"live {shown}": lambda shown=shown: live(shown),
        }
        for row in ("model", "model_given", "model_mirrored"):
            made[f"evaluate {row} {shown}"] = lambda shown=shown, row=row: evaluated(shown, row)
    made["dub together two"] = lambda: dub("two", *given, "--objects", "together")
    return made


def command(*words: object) -> None:
    assert run([str(word) for word in words]) == 0


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    # OpenVINO would round otherwise, and compile longer than these moments take to hear.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        yield write_inputs(tmp_path_factory.mktemp("nets"))


@pytest.mark.parametrize("name", list(ways(Path())))
def test_the_sound_is_that_of_before(folder: Path, name: str) -> None:
    kept = np.load(NETS)
    heard = ways(folder)[name]()
    assert heard.shape == (NUM_TICKS * TIMING.samples_per_tick, 2)
    assert np.abs(heard).max() > 1e-2, "the random model is silent"
    error = float(np.abs(heard[::EVERY] - kept[name]).max())
    is_same = str(kept["machine"]) == machine()
    assert error <= (0.0 if is_same else ROUNDING), f"{name} changed by {error:.2g}"


def make() -> None:
    """Writes the file anew."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setenv(SWITCH, "0")
        folder = write_inputs(Path(scratch))
        heard = {name: way()[::EVERY] for name, way in ways(folder).items()}
    before = dict(np.load(NETS)) if NETS.exists() else {}
    for name, part in heard.items():
        print(f"{name}: {np.abs(part - before[name]).max():.2g}" if name in before else name)
    np.savez_compressed(NETS, machine=machine(), **heard)


if __name__ == "__main__":
    make()
