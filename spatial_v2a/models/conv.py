"""Causal depthwise convolution blocks that stream.

Legend: B streams, T steps, D width, S cache slots (kernel - 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spatial_v2a.models.streaming import write_


@dataclass
class ConvState:
    """The last kernel - 1 inputs, [B, S, D]; zeros are the offline padding."""

    tail_BSD: Tensor


class CausalDepthwiseConv(nn.Module):
    """out[t] = bias + sum_k weight[k] * x[t - (K - 1) + k], per channel.

    Written as K shifted products: at widths of a few hundred this is faster on a CPU core than a
    grouped convolution, and offline and streaming share every operation.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight_KD = nn.Parameter(torch.randn(kernel, width) / kernel**0.5)
        self.bias_D = nn.Parameter(torch.zeros(width))

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> ConvState:
        """Zero history for `batch_size` streams."""
        del max_chunk  # the tail does not grow with the chunk
        shape = (batch_size, self.kernel - 1, self.weight_KD.shape[1])
        return ConvState(torch.zeros(shape, device=device, dtype=dtype))

    def forward(
        self, x_BTD: Tensor, state: ConvState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """Filters [B, T, D]; idle rows of `state` are left as they are."""
        num_past, num_steps = self.kernel - 1, x_BTD.shape[1]
        if state is None:
            past_BSD = x_BTD.new_zeros(x_BTD.shape[0], num_past, x_BTD.shape[2])
        else:
            past_BSD = state.tail_BSD
        padded_BTD = torch.cat([past_BSD, x_BTD], dim=1)
        out_BTD = self.bias_D + sum(
            self.weight_KD[k] * padded_BTD[:, k : k + num_steps] for k in range(self.kernel)
        )
        if state is not None:
            write_(state.tail_BSD, padded_BTD[:, padded_BTD.shape[1] - num_past :], active)
        return out_BTD


class ConvBlock(nn.Module):
    """Residual block: causal depthwise conv, RMSNorm, two-layer MLP (ConvNeXt, 2201.03545)."""

    def __init__(self, width: int, *, kernel: int, expansion: int) -> None:
        super().__init__()
        self.conv = CausalDepthwiseConv(width, kernel)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale_D = nn.Parameter(torch.full((width,), 0.3))

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> ConvState:
        """State of the convolution."""
        return self.conv.init_state(batch_size, max_chunk=max_chunk, device=device, dtype=dtype)

    def forward(
        self, x_BTD: Tensor, state: ConvState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        hidden_BTD = self.norm(self.conv(x_BTD, state, active))
        hidden_BTD = self.down(nn.functional.gelu(self.up(hidden_BTD), approximate="tanh"))
        return x_BTD + self.scale_D * hidden_BTD


class ConvStack(nn.Module):
    """Several `ConvBlock`s in a row; its state is a list of theirs."""

    def __init__(self, width: int, *, depth: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(width, kernel=kernel, expansion=expansion) for _ in range(depth)
        )

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[ConvState]:
        """One `ConvState` per block."""
        return [
            block.init_state(batch_size, max_chunk=max_chunk, device=device, dtype=dtype)
            for block in self.blocks
        ]

    def forward(
        self,
        x_BTD: Tensor,
        state: list[ConvState] | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, None if state is None else state[index], active)
        return x_BTD
