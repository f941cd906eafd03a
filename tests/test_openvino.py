"""OpenVINO as a compiler: encoders and engine give what PyTorch gives, int8 nearly so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.compiled import (
    SWITCH,
    OpenVinoGraph,
    compile_traced,
    has_openvino,
)
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.errors import UserError, install_command
from spatial_v2a.inference.engine.engine import Engine, EngineSettings, fastest_weights
from spatial_v2a.model import SpatialV2A
from spatial_v2a.timing import TIMING
from tests.test_engine import random_features, tick
from tests.tiny_checkpoint import shaken, write_tiny_checkpoint

pytestmark = pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def tiny_model(tiny_config: Config) -> SpatialV2A:
    return shaken(SpatialV2A(tiny_config)).eval()


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not has_openvino() and fastest_weights("cpu") == "float32"
    monkeypatch.setenv(SWITCH, "1")
    assert has_openvino() and fastest_weights("cpu") == "int8"
    assert fastest_weights("cuda") == "bfloat16"


def test_inputs_may_move_and_need_not_be_contiguous() -> None:
    """New memory, a view with strides, and a tensor changed in place are all read anew."""

    class Sum(torch.nn.Module):
        def forward(self, a, b):
            return a + 2 * b, a.sum(dim=1)

    example = (torch.zeros(2, 3), torch.zeros(2, 3))
    graph = OpenVinoGraph(compile_traced(torch.jit.trace(Sum(), example), example))
    a = torch.arange(6.0).reshape(2, 3)
    wide = torch.arange(12.0).reshape(3, 4).T[:2]
    for b in (torch.ones(2, 3), wide, torch.full((2, 3), -1.0)):
        for _ in range(2):
            found = [value.clone() for value in graph(a, b)]
            for got, expected in zip(found, Sum()(a, b), strict=True):
                torch.testing.assert_close(got, expected)
            a += 1.0


def test_matrices_in_8_bit_are_near() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 512)
    x = torch.randn(4, 256)
    traced = torch.jit.trace(layer, (x,))
    with torch.inference_mode():
        expected = layer(x)
        (found,) = OpenVinoGraph(compile_traced(traced, (x,), weights="int8"))(x)
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < 0.02


def test_compiled_encoders_give_what_they_give_as_written(
    tiny_config: Config, tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    perception = Perception.from_checkpoint(folder, tiny_config.perception)
    random = torch.Generator().manual_seed(3)
    for encoder in (perception.dino, perception.depth, perception.detector):
        x_BCHW = torch.rand(encoder.example().shape, generator=random)
        compiled = encoder.run(x_BCHW)
        with encoder.uncompiled():
            plain = encoder.run(x_BCHW)
        assert compiled.shape == plain.shape and plain.abs().max() > 1e-3
        assert (compiled - plain).abs().max() <= 1e-4 * plain.abs().max()


def test_an_hour_in_the_positions_are_still_exact(tiny_config: Config, tiny_model) -> None:
    """The graph is float32; an angle after an hour of tokens would be off by a degree in it."""
    features = random_features(tiny_config, num_streams=1, num_ticks=6)
    engines = [Engine(tiny_model, is_compiled=is_compiled) for is_compiled in (False, True)]
    heard = []
    for engine in engines:
        engine.generate(features)
        with torch.inference_mode():
            for layer in engine.state.generator.backbone.layers:
                # A whole number of turns of the ring later: the slots hold what they held.
                ring = layer.k_BHSE.shape[2]
                layer.position_B += ring * (2 * 3600 * TIMING.tick_hz // ring)
        heard.append(engine.generate(features))
    assert (heard[0] - heard[1]).abs().max() < 1e-5


def test_int8_needs_openvino_and_a_compiled_engine(
    tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineSettings(weights="int8")
    Engine(tiny_model, settings=settings, is_compiled=True)
    with pytest.raises(UserError, match="OpenVINO"):
        Engine(tiny_model, settings=settings)
    monkeypatch.setenv(SWITCH, "0")
    with pytest.raises(UserError, match=re.escape(install_command("cpu"))):
        Engine(tiny_model, settings=settings, is_compiled=True)


def test_the_bundled_checkpoint_in_8_bit_is_near() -> None:
    """The real weights, whose matrices are large enough; later the two streams go apart.

    What was heard is heard again through the history, so a small error grows, and levels stay.
    """
    model = SpatialV2A.from_pretrained("stage")
    features = random_features(model.config, num_streams=1, num_ticks=10)
    heard = {}
    for weights in ("float32", "int8"):
        settings = EngineSettings(weights=weights)
        engine = Engine(model, settings=settings, is_compiled=True)
        heard[weights] = torch.cat([engine.step(tick(features, n)) for n in range(10)], dim=1)
    first = slice(TIMING.samples_per_tick)
    difference = (heard["int8"] - heard["float32"])[:, first]
    assert 1e-4 < float(difference.norm() / heard["float32"][:, first].norm()) < 0.05
    level_db = 20 * torch.log10(heard["int8"].norm() / heard["float32"].norm())
    assert abs(float(level_db)) < 0.5


AFTER_A_NETWORK = """
import ctypes, gc, signal, torch
from spatial_v2a.conditioning.compiled import OpenVinoGraph, compile_traced

class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def signal_stack():
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.at

signal.signal(signal.SIGINT, signal.default_int_handler)
stacks, graphs = [], []
for _ in range(2):
    traced = torch.jit.trace(torch.nn.Linear(4, 4), torch.zeros(1, 4))
    graphs.append(OpenVinoGraph(compile_traced(traced, (torch.zeros(1, 4),))))
    stacks.append(signal_stack())
assert stacks[0] == stacks[1], "every network brings a stack for signals, and takes it with it"
del graphs, traced
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the stack of signals")
def test_ctrl_c_after_the_last_network_is_an_interrupt() -> None:
    """It was a segmentation fault: signals were handled on memory that OpenVINO had freed."""
    command = [sys.executable, "-c", AFTER_A_NETWORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
