"""Attention by xformers gives what PyTorch's gives, and is refused where it cannot run.

xformers has kernels for GPUs only. Here its one function is replaced by what its documentation
says it works out, so that layout, mask and alignment are held without a GPU.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from spatial_v2a.errors import UserError
from spatial_v2a.models.attention import SlidingWindowAttention, set_attention_backend


class LowerTriangularMask:
    """Stands for xformers' mask of the same name."""


def documented_attention(q_BTHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor, attn_bias) -> Tensor:
    """softmax(q k' / sqrt(E) + bias) v of [B, tokens, H, E], and what its kernels insist on."""
    scores = torch.einsum("bthe,bshe->bhts", q_BTHE, k_BSHE) * q_BTHE.shape[-1] ** -0.5
    if isinstance(attn_bias, LowerTriangularMask):
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    else:
        assert attn_bias.shape == scores.shape and attn_bias.dtype == q_BTHE.dtype
        assert attn_bias.stride(-2) % 8 == 0 and attn_bias.stride(-1) == 1
        scores = scores + attn_bias
    return torch.einsum("bhts,bshe->bthe", scores.softmax(-1), v_BSHE)


@pytest.fixture
def documented_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("xformers")
    package.ops = SimpleNamespace(
        LowerTriangularMask=LowerTriangularMask, memory_efficient_attention=documented_attention
    )
    monkeypatch.setitem(sys.modules, "xformers", package)


def attention(backend: str, *, window: int) -> SlidingWindowAttention:
    torch.manual_seed(0)
    layer = SlidingWindowAttention(32, num_heads=2, window=window, rope_base=100.0)
    layer.attention_backend = backend
    return layer


@pytest.mark.parametrize("window", [4, 50], ids=["windowed", "causal"])
def test_both_give_the_same_offline(documented_xformers, window: int) -> None:
    x_BTD = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = (attention(b, window=window)(x_BTD) for b in ("sdpa", "xformers"))
    torch.testing.assert_close(found, expected)


def test_both_give_the_same_in_a_stream(documented_xformers) -> None:
    """Chunks of two tokens through a ring of five slots, which turns over several times."""
    x_BTD = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
    heard = []
    with torch.inference_mode():
        for backend in ("sdpa", "xformers"):
            layer = attention(backend, window=4)
            state = layer.init_state(2, max_chunk=2, device="cpu", dtype=torch.float32)
            chunks = [layer(chunk, state) for chunk in x_BTD.split(2, dim=1)]
            heard.append(torch.cat(chunks, dim=1))
    torch.testing.assert_close(*heard)


def test_it_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = attention("sdpa", window=4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install .*xformers==0.0.35"):
        set_attention_backend(layer, "xformers")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="model is on cpu; take sdpa"):
        set_attention_backend(layer, "xformers")
    assert layer.attention_backend == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers' kernels need a GPU")
def test_the_kernels_themselves_give_the_same() -> None:
    pytest.importorskip("xformers", reason="xformers is not installed")
    x_BTD = torch.randn(2, 16, 32, device="cuda", dtype=torch.bfloat16)
    heard = []
    with torch.inference_mode():
        for backend in ("sdpa", "xformers"):
            layer = attention("sdpa", window=4).to("cuda", torch.bfloat16)
            set_attention_backend(layer, backend)
            state = layer.init_state(2, max_chunk=2, device="cuda", dtype=torch.bfloat16)
            chunks = [layer(chunk, state) for chunk in x_BTD.split(2, dim=1)]
            heard.append(torch.cat(chunks, dim=1))
    torch.testing.assert_close(*heard, rtol=2e-2, atol=2e-2)
