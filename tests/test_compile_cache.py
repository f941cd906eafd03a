"""Compiled networks are kept: found again, shared, bounded, and never believed blindly."""

import gc
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning import compiled as compiled_networks
from spatial_v2a.conditioning.compiled import (
    cache_folder,
    has_openvino,
    keep_network,
    kept_network,
    make_key,
)
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.engine.compiled import CompiledPasses
from spatial_v2a.inference.engine.engine import Engine, EngineSettings
from spatial_v2a.inference.engine.pipeline import MIN_TICKS_TO_COMPILE, Pipeline
from spatial_v2a.model import SpatialV2A
from tests.test_engine import random_features
from tests.test_start_up import run_python
from tests.tiny_checkpoint import write_tiny_checkpoint

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
NETWORK = b"network" * 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, and no network in use."""
    gc.collect()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/spatial_v2a/compiled"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture
def num_compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what OpenVINO compiles, as a list of one number."""
    count, compile_model = [0], compiled_networks.compile_traced

    def counting(*args, **options):
        count[0] += 1
        return compile_model(*args, **options)

    for module in ("conditioning.frozen", "inference.engine.openvino_passes"):
        monkeypatch.setattr(f"spatial_v2a.{module}.compile_traced", counting)
    return count


def test_what_was_stored_is_found(folder: Path) -> None:
    assert kept_network("key") is None and cache_folder() == folder
    keep_network("key", NETWORK, [[1, None], [2, 3]])
    entry = kept_network("key")
    assert entry is not None
    assert (entry.network.tobytes(), entry.notes) == (NETWORK, [[1, None], [2, 3]])
    assert folder.stat().st_mode & 0o077 == 0 and kept_network("other") is None


def test_a_key_changes_with_everything_that_decides_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = {"a": torch.zeros(3, 4), "b": torch.ones(2, dtype=torch.int64)}
    packages = ("spatial_v2a", "transformers")

    def key(what="network", packages=packages, changed=None, **settings):
        return make_key(what, (weights | (changed or {})).items(), packages=packages, **settings)

    keys = [
        key(),
        key("another"),
        key(packages=()),
        key(size=1),
        key(size=2),
        key(changed={"a": torch.zeros(4, 3)}),
        key(changed={"a": torch.full((3, 4), -0.0)}),
        key(changed={"b": torch.ones(2, dtype=torch.int32)}),
    ]
    assert key() == keys[0] and len(set(keys)) == len(keys)
    monkeypatch.setattr(compiled_networks, "_processor", lambda: "another")
    assert key() not in keys


def cut(data: bytes) -> bytes:
    return data[:-5]


def flip(data: bytes) -> bytes:
    return data[:4000] + bytes([data[4000] ^ 1]) + data[4001:]


def foreign_format(data: bytes) -> bytes:
    return b"PK" + data[2:]


@pytest.mark.parametrize(
    "damage",
    [cut, flip, foreign_format, lambda data: b"", lambda data: data[:60]],
    ids=["cut", "flipped", "foreign", "empty", "header"],
)
def test_a_damaged_entry_counts_as_absent(folder: Path, damage) -> None:
    keep_network("key", NETWORK, None)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kept_network("key") is None
    keep_network("key", NETWORK, None)
    assert kept_network("key") is not None


def test_an_entry_that_others_could_have_written_is_not_read(folder: Path) -> None:
    keep_network("key", NETWORK, None)
    (path,) = folder.iterdir()
    path.chmod(0o622)
    assert kept_network("key") is None
    path.chmod(0o600)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    assert kept_network("key") is None
    path.unlink()
    os.mkfifo(path)
    assert kept_network("key") is None


def test_what_was_used_longest_ago_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_networks, "MAX_BYTES", 3 * len(NETWORK))
    for second, name in enumerate(("first", "second")):
        keep_network(name, NETWORK, None)
        os.utime(folder / f"{name}.network", (second, second))
    abandoned = folder / "killed.partial"
    abandoned.write_bytes(NETWORK)
    os.utime(abandoned, (0, 0))
    assert kept_network("first") is not None  # used now, so that the second is the older one
    keep_network("third", NETWORK, None)
    assert sorted(path.stem for path in folder.iterdir()) == ["first", "third"]
    keep_network("too large", NETWORK * 2, None)
    assert kept_network("too large") is None and kept_network("third") is not None


def test_a_folder_that_cannot_be_written_costs_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_network("key", NETWORK, None)
    assert kept_network("key") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache/spatial_v2a/compiled"


@needs_openvino
def test_two_streams_compile_once(folder: Path, checkpoint: Path, num_compiled) -> None:
    """A second stream took as long as the first one: everything was compiled again."""
    model = SpatialV2A.from_pretrained(checkpoint)
    frame = torch.randint(0, 255, (90, 120, 3), dtype=torch.uint8).numpy()
    with model.stream() as first:
        compiled = num_compiled[0]
        assert compiled >= 3 + 5
        with model.stream() as second:
            assert num_compiled[0] == compiled
            for _ in range(3):
                assert (first.push(frame) == second.push(frame)).all()
    with model.stream(nfe=2):
        assert compiled < num_compiled[0] <= compiled + 5


@needs_openvino
def test_the_next_start_compiles_nothing_and_sounds_the_same(
    folder: Path, checkpoint: Path, num_compiled, tiny_config: Config
) -> None:
    """All networks are let go between the two, as at the end of a process."""
    features = random_features(tiny_config, num_streams=2, num_ticks=4)
    heard, seen, counts = [], [], []
    for _ in range(2):
        model = SpatialV2A.from_pretrained(checkpoint)
        perception = Perception.from_checkpoint(checkpoint, tiny_config.perception)
        seen.append(perception.dino.run(perception.dino.example() + 0.5))
        engine = Engine(model, num_streams=2, settings=EngineSettings(seed=1), is_compiled=True)
        heard.append(engine.generate(features))
        del perception, engine
        gc.collect()
        counts.append(num_compiled[0])
    assert counts[0] == counts[1] >= 3 + 5
    assert torch.equal(*heard) and torch.equal(*seen) and heard[0].abs().max() > 0


@needs_openvino
def test_damaged_entries_are_made_again(
    folder: Path, checkpoint: Path, num_compiled, tiny_config: Config
) -> None:
    """What passes for sound and is no network is compiled again as well."""
    for number in range(2):
        perception = Perception.from_checkpoint(checkpoint, tiny_config.perception)
        assert num_compiled[0] == 3 * (number + 1)
        del perception
        gc.collect()
        for path in folder.iterdir():
            path.unlink()
            keep_network(path.stem, NETWORK, None)


@needs_openvino
def test_a_model_of_no_checkpoint_is_not_kept(folder: Path, tiny_config: Config) -> None:
    Engine(SpatialV2A(tiny_config), is_compiled=True)
    assert not folder.exists()


@needs_openvino
def test_a_second_start_loads_no_library_of_the_networks(folder: Path, checkpoint: Path) -> None:
    """Transformers, ultralytics and what they load took longer than everything else."""
    code = f"""
import json, sys, numpy
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.model import SpatialV2A
with SpatialV2A.from_pretrained({str(checkpoint)!r}).stream() as stream:
    stream.push(numpy.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=numpy.uint8))
print(json.dumps([name for name in sys.modules]))
"""
    loaded = [json.loads(run_python(code)) for _ in range(2)]
    never = {"transformers", "ultralytics", "torchvision", "torchaudio", "matplotlib", "sympy"}
    assert "transformers" in loaded[0]
    assert not never.intersection(loaded[1]), never.intersection(loaded[1])


@needs_openvino
def test_the_switch_leaves_the_cache_alone(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Config
) -> None:
    monkeypatch.setenv(compiled_networks.SWITCH, "0")
    Perception.from_checkpoint(checkpoint, tiny_config.perception)
    assert not folder.exists()


def test_a_damaged_entry_is_said_to_who_asks(folder: Path, caplog) -> None:
    keep_network("key", NETWORK, None)
    (path,) = folder.iterdir()
    path.write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert kept_network("key") is None
    assert str(path) in caplog.text


def test_a_short_clip_is_not_compiled_for_where_nothing_is_kept(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks count over all files of a run: many short clips are worth it as well."""
    dubber = Dubber(checkpoint, device="cpu")

    def is_compiled(num_ticks: int) -> bool:
        dubber.begin(num_ticks=num_ticks)
        passes = dubber.mix.engine.passes
        return isinstance(passes, CompiledPasses)

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not is_compiled(30) and not is_compiled(MIN_TICKS_TO_COMPILE - 31)
    assert is_compiled(1)


@pytest.mark.parametrize("openvino", ["0", "1"])
def test_a_second_pipeline_traces_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, openvino: str
) -> None:
    """PyTorch never frees what it traced: each pipeline left 90 MB behind."""
    monkeypatch.setenv(compiled_networks.SWITCH, openvino)
    traced = []
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *a, **k: traced.append(1) or trace(*a, **k))
    counts = []
    for _ in range(3):
        pipeline = Pipeline(checkpoint, device="cpu", settings=EngineSettings(nfe=1))
        pipeline.begin()
        pipeline.step(np.zeros((48, 64, 3), np.uint8))
        del pipeline
        gc.collect()
        counts.append(len(traced))
    assert counts[0] > 0 and counts[1] == counts[2] == counts[0]
