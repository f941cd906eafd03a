"""Streaming parity of the conditioner and the generator, float64."""

from dataclasses import replace

import pytest
import torch

from spatial_v2a.models.streaming import reset_
from tests.parity import (
    check_causal,
    check_chunks,
    check_idle_and_reset,
    check_poison,
    check_snapshot,
    close,
    take,
)
from tests.tiny_generator import BACKBONE, CONDITIONER, LATENT_DIM, random_features, tiny_generator

NUM_TICKS = 30  # the largest ring has 2 x 5 + 2 x 4 - 1 = 17 slots, 60 tokens pass through
CUTS = [[1], [2], [3], [4], [2, 1, 4, 3]]


@pytest.fixture
def generator():
    return tiny_generator().double().requires_grad_(False)


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(5)
    latents = torch.randn(3, NUM_TICKS, LATENT_DIM, generator=rng, dtype=torch.float64)
    return random_features(3, NUM_TICKS, dtype=torch.float64), latents


def _step(generator):
    def step(inputs, state, active):
        condition = generator(*inputs, state, active)
        return torch.cat((condition.z_BTZ, condition.v_BTV), dim=-1)

    return step


def _new_state(module):
    return lambda batch_size, max_chunk: module.init_state(
        batch_size, max_chunk=max_chunk, device="cpu", dtype=torch.float64
    )


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_offline_equals_streaming(generator, inputs, cuts):
    check_chunks(_step(generator), _new_state(generator), inputs, NUM_TICKS, cuts)


@pytest.mark.parametrize("has_difference", [True, False], ids=["difference", "no-difference"])
def test_conditioner_alone(inputs, has_difference):
    config = CONDITIONER.model_copy(
        update={"temporal_difference": has_difference, "shape_octaves": 2, "shape_ticks": 4}
    )
    conditioner = tiny_generator(conditioner=config).double().requires_grad_(False).conditioner
    for cuts in CUTS:
        check_chunks(conditioner, _new_state(conditioner), inputs[0], NUM_TICKS, cuts)
    check_idle_and_reset(conditioner, _new_state(conditioner), inputs[0], NUM_TICKS, max_chunk=2)
    check_snapshot(conditioner, _new_state(conditioner), inputs[0], NUM_TICKS)


def test_idle_rows_and_a_reset(generator, inputs):
    check_idle_and_reset(_step(generator), _new_state(generator), inputs, NUM_TICKS, max_chunk=3)


def test_snapshot_and_reset(generator, inputs):
    check_snapshot(_step(generator), _new_state(generator), inputs, NUM_TICKS)


def test_poisoned_slots_change_nothing(generator, inputs):
    def rings(state):
        yield state.memory_BD
        for cache in state.backbone.layers:
            yield from (cache.k_BHSE, cache.v_BHSE)

    check_poison(_step(generator), _new_state(generator), inputs, rings)


@pytest.mark.parametrize("holds_latent", [False, True])
def test_tick_by_tick_equals_teacher_forcing(generator, inputs, holds_latent):
    """A tick's two passes, or the one that takes the held latent along, against offline.

    Rows pause, and one row starts anew in the middle.
    """
    features, latents = inputs
    offline = generator(features, latents)
    state = _new_state(generator)(3, 1)

    def step(ticks: list[int], active: torch.Tensor | None):
        rows = [take(features, slice(b, b + 1), slice(t, t + 1)) for b, t in enumerate(ticks)]
        names = vars(rows[0])
        now = type(features)(**{n: torch.cat([vars(row)[n] for row in rows]) for n in names})
        v_B1V = generator.conditioner(now, state.conditioner, active)
        attend = generator.attend_with_latent if holds_latent else generator.attend
        condition = attend(v_B1V, state, active)
        x_BD = torch.stack([latents[b, t] for b, t in enumerate(ticks)])
        remember = generator.hold_latent if holds_latent else generator.observe_latent
        remember(x_BD, state, active)
        for b, tick in enumerate(ticks):
            if active is None or active[b]:
                close(condition.z_BTZ[b, 0], offline.z_BTZ[b, tick], f"z of row {b} at {tick}")
                close(condition.v_BTV[b, 0], offline.v_BTV[b, tick], f"v of row {b} at {tick}")

    for tick in range(NUM_TICKS):
        for active in (torch.tensor([True, False, True]), torch.tensor([False, True, False])):
            step([tick] * 3, active)
        if tick == 3:
            break
    reset_(state, torch.tensor([False, True, False]))
    for tick in range(4, NUM_TICKS):
        step([tick, tick - 4, tick], None)


def test_condition_never_sees_its_own_latent_or_the_future(generator, inputs):
    features, latents = inputs

    def from_latents(x, state, active):
        return generator(features, x).z_BTZ

    check_causal(from_latents, latents, NUM_TICKS, sees_own_tick=False)


@pytest.mark.parametrize("field", ["dino_BTND", "depth_BTHW", "boxes_BTKF"])
def test_condition_never_sees_a_future_frame(generator, inputs, field):
    features, latents = inputs
    features = features.map(lambda t: torch.ones_like(t) if t.dtype == torch.bool else t)

    def from_field(x, state, active):
        return generator(replace(features, **{field: x}), latents).z_BTZ

    check_causal(from_field, getattr(features, field), NUM_TICKS)


def test_window_is_counted_in_ticks():
    assert tiny_generator().backbone.window == 2 * BACKBONE.window_ticks
