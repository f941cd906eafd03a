"""Backbone and head in bfloat16: near the samples of float32, with the islands in float32."""

import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.inference.engine.engine import Engine, EngineSettings
from spatial_v2a.model import SpatialV2A
from tests.test_engine import random_features, tick
from tests.tiny_checkpoint import shaken

NARROW = EngineSettings(weights="bfloat16", seed=3)


@pytest.fixture(scope="module")
def model(tiny_config: Config) -> SpatialV2A:
    return shaken(SpatialV2A(tiny_config)).eval()


def test_samples_are_near_those_of_float32(tiny_config: Config, model: SpatialV2A) -> None:
    features = random_features(tiny_config, num_streams=2, num_ticks=8)
    wide, narrow = (
        Engine(model, num_streams=2, settings=settings).generate(features)
        for settings in (EngineSettings(seed=3), NARROW)
    )
    error = float((narrow - wide).norm() / wide.norm())
    assert 1e-5 < error < 0.05


def test_only_backbone_and_head_are_narrow(model: SpatialV2A) -> None:
    engine = Engine(model, settings=NARROW)
    narrow = engine.passes.model.generator
    assert narrow.head.out.weight.dtype == torch.bfloat16
    assert narrow.backbone.norm.weight.dtype == torch.float32
    assert narrow.conditioner.out.weight is model.generator.conditioner.out.weight
    assert engine.state.generator.backbone.layers[0].k_BHSE.dtype == torch.bfloat16
    assert engine.state.generator.conditioner.dino_BPD.dtype == torch.float32
    # The model itself stays what it was, for engines in float32.
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_traced_is_eager_to_the_bit_and_streams_are_apart(
    tiny_config: Config, model: SpatialV2A
) -> None:
    features = random_features(tiny_config, num_streams=2, num_ticks=6)

    def hear(is_compiled: bool) -> torch.Tensor:
        engine = Engine(model, num_streams=2, settings=NARROW, is_compiled=is_compiled)
        first = engine.generate(features)
        engine.reset(torch.tensor([True, False]))
        return torch.cat([first, engine.step(tick(features, 0))], dim=1)

    eager, traced = hear(False), hear(True)
    assert torch.equal(eager, traced)
    # The first stream began anew, the second went on.
    samples = eager.shape[1] // 7
    assert torch.equal(eager[0, -samples:], eager[0, :samples])
    assert not torch.equal(eager[1, -samples:], eager[1, :samples])
