"""Causal sliding-window self-attention with RoPE and a ring cache; one code offline and streaming.

Legend: B streams, T tokens of this call, S cache slots, D width, H heads, E head width.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_v2a.errors import UserError, install_command
from spatial_v2a.models.streaming import are_writes_put_off, write_, write_ring_

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


@dataclass
class AttentionState:
    """Ring cache of one layer; token at position p lies in slot p modulo S.

    Attributes:
        k_BHSE: keys, already rotated.
        v_BHSE: values.
        position_B: tokens seen so far, int64.
    """

    k_BHSE: Tensor
    v_BHSE: Tensor
    position_B: Tensor


@dataclass
class AttentionPlan:
    """What every layer of a stack shares in one call: rotations, visibility, ring slots.

    Attributes:
        cos_B1TE, sin_B1TE: rotations, half of the head width (B is 1 offline).
        mask_B1TS: True where a query may look; None means plain causal.
        slots_BT: ring slots of the new tokens; None offline.
        next_B: position after this call; None offline.
    """

    cos_B1TE: Tensor
    sin_B1TE: Tensor
    mask_B1TS: Tensor | None
    slots_BT: Tensor | None
    next_B: Tensor | None


class SlidingWindowAttention(nn.Module):
    """Multi-head attention in which a token sees itself and the `window - 1` tokens before it."""

    def __init__(self, width: int, *, num_heads: int, window: int, rope_base: float) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(f"width {width} must be a multiple of twice num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.window = window
        self.rope_base = rope_base
        self.attention_backend: AttentionBackend = "sdpa"
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> AttentionState:
        """All-zero ring of window + max_chunk - 1 slots (max_chunk counts tokens)."""
        shape = (batch_size, self.num_heads, self.window + max_chunk - 1, self.head_width)
        return AttentionState(
            k_BHSE=torch.zeros(shape, device=device, dtype=dtype),
            v_BHSE=torch.zeros(shape, device=device, dtype=dtype),
            position_B=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def plan(
        self,
        x_BTD: Tensor,
        state: AttentionState | None = None,
        *,
        has_held_back: bool = False,
    ) -> AttentionPlan:
        """Rotations and masks for a call with `x_BTD`; equal for all layers of one stack.

        Args:
            x_BTD: tokens.
            state: as in `forward`.
            has_held_back: the first token is one that the call before held back. At the start of a
                stream there is none: what stands there lies at position -1, seen by itself alone.
        """
        num_tokens, device = x_BTD.shape[1], x_BTD.device
        step_T = torch.arange(num_tokens, device=device)
        if state is None:
            position_BT, slots_BT, next_B = step_T[None], None, None
            mask_B1TS = None if num_tokens <= self.window else self._visible(step_T, step_T)
        else:
            capacity = state.k_BHSE.shape[2]
            if num_tokens > capacity - self.window + 1:
                raise ValueError(
                    f"chunk of {num_tokens} tokens exceeds max_chunk "
                    f"{capacity - self.window + 1}; cut it or ask init_state for more"
                )
            start_B = state.position_B
            if has_held_back:
                start_B = start_B - (start_B == 0).to(start_B.dtype)
            position_BT, next_B = start_B[:, None] + step_T, start_B + num_tokens
            slots_BT = position_BT % capacity
            # Position held by slot s once this chunk is written: the newest p with p % S == s.
            newest_B1 = position_BT[:, -1:]
            slot_S = torch.arange(capacity, device=device)
            held_BS = newest_B1 - (newest_B1 - slot_S) % capacity
            is_seen_BTS = self._visible(position_BT, held_BS) & (held_BS >= 0)[:, None]
            if has_held_back:
                is_seen_BTS |= position_BT[:, :, None] == held_BS[:, None]
            mask_B1TS = is_seen_BTS[:, None]
        cos, sin = rope_angles(position_BT, self.head_width, self.rope_base)
        return AttentionPlan(
            cos.to(x_BTD.dtype)[:, None],
            sin.to(x_BTD.dtype)[:, None],
            mask_B1TS,
            slots_BT,
            next_B,
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: AttentionState | None = None,
        active: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        """Attends within [B, T, D]; with a state, also to the tokens before this call.

        Args:
            x_BTD: tokens.
            state: ring cache, written in place; None treats `x_BTD` as the whole sequence.
            active: bool [B]; idle rows leave their state untouched and return arbitrary values.
            plan: result of `plan`, to share it between layers at the same position.
        """
        plan = self.plan(x_BTD, state) if plan is None else plan
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, self.head_width))
        qkv_3BHTE = qkv.permute(2, 0, 3, 1, 4)
        q_BHTE, k_BHTE = _rotate(qkv_3BHTE[:2], plan).unbind(0)
        v_BHTE = qkv_3BHTE[2]
        if state is not None:
            write_ring_(state.k_BHSE, k_BHTE, plan.slots_BT, active)
            write_ring_(state.v_BHSE, v_BHTE, plan.slots_BT, active)
            write_(state.position_B, plan.next_B, active)
        if state is not None and are_writes_put_off():
            out_BHTE = _attend_apart(q_BHTE, (k_BHTE, v_BHTE), state, plan)
        else:
            if state is not None:
                k_BHTE, v_BHTE = state.k_BHSE, state.v_BHSE
            out_BHTE = attend(
                q_BHTE, k_BHTE, v_BHTE, plan.mask_B1TS, backend=self.attention_backend
            )
        return self.out(out_BHTE.transpose(1, 2).flatten(2))

    def _visible(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query[..., :, None] - key[..., None, :]
        return (distance >= 0) & (distance < self.window)


def rope_angles(position_BT: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, T, E/2] of RoPE in float64 (RoFormer, arXiv 2104.09864, eq. 15).

    Float64 because float32 angles lose whole degrees after an hour of tokens.
    """
    half = torch.arange(head_width // 2, device=position_BT.device, dtype=torch.float64)
    frequency_E = base ** (-2.0 * half / head_width)
    angle_BTE = position_BT.to(torch.float64)[..., None] * frequency_E
    return angle_BTE.cos(), angle_BTE.sin()


def _rotate(x_2BHTE: Tensor, plan: AttentionPlan) -> Tensor:
    a, b = x_2BHTE.chunk(2, dim=-1)
    cos, sin = plan.cos_B1TE, plan.sin_B1TE
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def _attend_apart(
    q_BHTE: Tensor, new_BHTE: tuple[Tensor, Tensor], state: AttentionState, plan: AttentionPlan
) -> Tensor:
    """Attention over a ring that does not hold the new keys and values yet, and over these."""
    k_BHTE, v_BHTE = new_BHTE
    num_slots = state.k_BHSE.shape[2]
    slots_B1TT = plan.slots_BT[:, None, None, :].expand(-1, -1, plan.slots_BT.shape[1], -1)
    new_mask_B1TT = plan.mask_B1TS.gather(-1, slots_B1TT)
    # The ring's old content of the slots that are about to be written is out of sight.
    old_mask_B1TS = plan.mask_B1TS.scatter(-1, slots_B1TT, torch.zeros_like(new_mask_B1TT))
    scores = torch.cat(
        (q_BHTE @ state.k_BHSE.transpose(2, 3), q_BHTE @ k_BHTE.transpose(2, 3)), dim=-1
    )
    mask = torch.cat((old_mask_B1TS, new_mask_B1TT), dim=-1)
    scores = (scores * q_BHTE.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    return weights[..., :num_slots] @ state.v_BHSE + weights[..., num_slots:] @ v_BHTE
