"""Which kernel works attention out: PyTorch's own by default, xformers where it is asked for.

Legend: B streams, T queries, S keys, H heads, E head width.
"""

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_v2a.errors import UserError
from spatial_v2a.extras import install_command

AttentionBackend = Literal["sdpa", "xformers"]
# xformers reads a bias in rows whose length is a multiple of this.
_BIAS_ALIGNMENT = 8


def attend(
    q_BHTE: Tensor,
    k_BHSE: Tensor,
    v_BHSE: Tensor,
    mask_B1TS: Tensor | None,
    *,
    backend: AttentionBackend,
) -> Tensor:
    """Scaled dot-product attention [B, H, T, E].

    Args:
        q_BHTE, k_BHSE, v_BHSE: queries, keys and values.
        mask_B1TS: bool, True where a query may look, broadcast over B and H; None is causal.
        backend: whose kernel.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(
            q_BHTE, k_BHSE, v_BHSE, attn_mask=mask_B1TS, is_causal=mask_B1TS is None
        )
    from xformers import ops

    bias = ops.LowerTriangularMask() if mask_B1TS is None else _bias(mask_B1TS, q_BHTE)
    q_BTHE, k_BSHE, v_BSHE = (x.transpose(1, 2) for x in (q_BHTE, k_BHSE, v_BHSE))
    return ops.memory_efficient_attention(q_BTHE, k_BSHE, v_BSHE, attn_bias=bias).transpose(1, 2)


def set_attention_backend(model: nn.Module, backend: AttentionBackend) -> None:
    """Chooses the kernel of every causal attention in `model`; engines made later use it.

    Raises:
        UserError: xformers is not installed, or the model is not on a GPU.
    """
    if backend == "xformers":
        if importlib.util.find_spec("xformers") is None:
            raise UserError(
                "attention by xformers needs the package; take sdpa, or install it with:"
                f" {install_command('xformers')}"
            )
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise UserError(
                f"xformers has kernels for GPUs only and the model is on {device}; take sdpa"
            )
    for module in model.modules():
        if hasattr(module, "attention_backend"):
            module.attention_backend = backend


def _bias(mask_B1TS: Tensor, q_BHTE: Tensor) -> Tensor:
    """The mask as what is added to the scores: 0 or minus infinity, [B, H, T, S]."""
    batch_size, num_heads, num_queries, _ = q_BHTE.shape
    num_keys = mask_B1TS.shape[-1]
    padded = -(-num_keys // _BIAS_ALIGNMENT) * _BIAS_ALIGNMENT
    bias = torch.zeros(
        (batch_size, num_heads, num_queries, padded), device=q_BHTE.device, dtype=q_BHTE.dtype
    )[..., :num_keys]
    return bias.masked_fill_(~mask_B1TS, -torch.inf)
