"""Streaming parity of attention and of the transformer, float64."""

import pytest
import torch
from torch import nn

from spatial_v2a.models.attention import SlidingWindowAttention
from spatial_v2a.models.streaming import snapshot, state_tensors, writes_put_off
from spatial_v2a.models.transformer import BackboneConfig, Transformer
from tests.parity import (
    check_causal,
    check_chunks,
    check_idle_and_reset,
    check_poison,
    check_snapshot,
    close,
)

WIDTH, WINDOW, NUM_TOKENS = 16, 5, 40  # the largest ring below has 11 slots: over two wraps
CUTS = [[1], [2], [3], [7], [3, 1, 7, 2, 5]]


def _layer(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name == "attention":
            layer = SlidingWindowAttention(WIDTH, num_heads=2, window=WINDOW, rope_base=100.0)
        else:
            config = BackboneConfig(
                width=WIDTH, num_layers=3, num_heads=2, hidden_dim=24, window_ticks=WINDOW
            )
            layer = Transformer(config, tokens_per_tick=1)
    return layer.double().requires_grad_(False)


@pytest.fixture(params=["attention", "transformer"])
def layer(request: pytest.FixtureRequest) -> nn.Module:
    return _layer(request.param)


@pytest.fixture
def x_BTD() -> torch.Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randn(3, NUM_TOKENS, WIDTH, generator=rng, dtype=torch.float64)


def _new_state(layer: nn.Module):
    return lambda batch_size, max_chunk: layer.init_state(
        batch_size, max_chunk=max_chunk, device="cpu", dtype=torch.float64
    )


def _rings(state):
    for cache in getattr(state, "layers", [state]):
        yield from (cache.k_BHSE, cache.v_BHSE)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_writes_put_off_and_carried_out_are_the_same(layer, x_BTD, chunk: int) -> None:
    """Over two wraps of the ring; until they are carried out the state is as it was."""
    plain, functional = (_new_state(layer)(3, chunk) for _ in range(2))
    for start in range(0, NUM_TOKENS - chunk + 1, chunk):
        x = x_BTD[:, start : start + chunk]
        before = snapshot(functional)
        with writes_put_off() as writes:
            heard = layer(x, functional)
        for tensor, copy in zip(state_tensors(functional), before, strict=True):
            assert torch.equal(tensor, copy)
        for write in writes:
            write.carry_out()
        close(heard, layer(x, plain), f"token {start}")
        for mine, theirs in zip(state_tensors(functional), state_tensors(plain), strict=True):
            close(mine.double(), theirs.double(), f"state after token {start}")


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_offline_equals_streaming(layer, x_BTD, cuts):
    check_chunks(layer, _new_state(layer), x_BTD, NUM_TOKENS, cuts)


def test_idle_rows_and_a_reset(layer, x_BTD):
    check_idle_and_reset(layer, _new_state(layer), x_BTD, NUM_TOKENS, max_chunk=3)


def test_snapshot_and_reset(layer, x_BTD):
    check_snapshot(layer, _new_state(layer), x_BTD, NUM_TOKENS)


def test_poisoned_slots_change_nothing(layer, x_BTD):
    check_poison(layer, _new_state(layer), x_BTD, _rings)


def test_gradient_is_causal(layer, x_BTD):
    check_causal(layer, x_BTD, NUM_TOKENS)


def test_window_ends_where_it_says():
    attention = _layer("attention")
    x = torch.zeros(1, 12, WIDTH, dtype=torch.float64).normal_(
        generator=torch.Generator().manual_seed(3)
    )
    x.requires_grad_()
    (grad,) = torch.autograd.grad(attention(x)[:, 11].sum(), x)
    reach = grad.abs().sum(-1)[0]
    assert (reach[: 12 - WINDOW] == 0).all() and (reach[12 - WINDOW :] > 0).all(), reach


def test_a_day_old_stream_rotates_like_a_fresh_one(x_BTD):
    """RoPE is relative: at position 5 million float32 angles would be off by degrees."""
    attention = _layer("attention")
    states = [_new_state(attention)(3, 1) for _ in range(2)]
    states[1].position_B.fill_(5_000_000 // states[1].k_BHSE.shape[2] * states[1].k_BHSE.shape[2])
    for ring in _rings(states[1]):
        ring.zero_()
    for tick in range(12):
        outs = [attention(x_BTD[:, tick : tick + 1], state) for state in states]
        if tick >= WINDOW:
            assert (outs[0] - outs[1]).abs().max() < 1e-8


def test_too_long_a_chunk_is_refused(layer, x_BTD):
    with pytest.raises(ValueError, match="exceeds max_chunk 2"):
        layer(x_BTD[:, :3], _new_state(layer)(3, 2))


def test_rows_do_not_mix(layer, x_BTD):
    close(layer(x_BTD)[1:2], layer(x_BTD[1:2]), "row alone")
