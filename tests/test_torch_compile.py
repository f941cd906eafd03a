"""`torch.compile` as a compiler of the passes: state in place, the eager samples.

The kernels themselves take a C++ compiler minutes; here Dynamo and AOTAutograd trace every pass,
and their graphs run as they are.
"""

import functools

import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.inference.engine.engine import Engine, EngineSettings, fastest_weights
from spatial_v2a.inference.engine.inductor import InductorPasses
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.streaming import state_tensors
from tests.test_engine import random_features, tick
from tests.tiny_checkpoint import shaken


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_compiled_gives_the_same_samples(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    graphs = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", graphs)
    model = shaken(SpatialV2A(tiny_config)).eval()
    features = random_features(tiny_config, num_streams=2, num_ticks=4)

    def hear(settings: EngineSettings) -> tuple[Engine, torch.Tensor]:
        engine = Engine(model, num_streams=2, settings=settings, is_compiled=True)
        addresses = [tensor.data_ptr() for tensor in state_tensors(engine.state)]
        first = engine.generate(features)
        engine.reset()
        idle = engine.step(tick(features, 0), torch.tensor([True, False]))
        heard = torch.cat([first, idle, engine.generate(features)], dim=1)
        assert addresses == [tensor.data_ptr() for tensor in state_tensors(engine.state)]
        return engine, heard

    eager_settings = EngineSettings(seed=1, guidance=1.5, weights=weights)
    monkeypatch.setenv("SPATIAL_V2A_OPENVINO", "0")
    _, expected = hear(eager_settings)
    engine, heard = hear(eager_settings.model_copy(update={"torch_compile": True}))
    assert type(engine.passes) is InductorPasses
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[weights]
    assert heard.abs().max() > 1e-3 and (heard - expected).abs().max() < tolerance


def test_8_bit_is_left_to_openvino() -> None:
    assert fastest_weights("cpu", torch_compile=True) == "float32"
