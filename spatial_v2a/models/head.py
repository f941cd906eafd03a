"""Denoising head: an MLP with adaptive layer norm that draws one latent given the condition.

Legend: `...` leading axes (noise draws, streams, ticks), D latent width, Z backbone output width,
V frame token width, W head width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spatial_v2a.models.diffusion import MIN_SIGMA, precondition
from spatial_v2a.strict import Count, StrictConfig, Width


class HeadConfig(StrictConfig):
    """Size of the head.

    Attributes:
        width: residual width.
        num_blocks: residual blocks.
        hidden_dim: inner width of a block.
        sigma_dim: number of Fourier features of the noise level.
        sigma_data: standard deviation of the latents it denoises.
    """

    width: Width
    num_blocks: Count
    hidden_dim: Width
    sigma_dim: int = Field(default=64, ge=2, le=4096, multiple_of=2)
    sigma_data: float = Field(default=1.0, gt=0, le=1000)


@dataclass
class HeadContext:
    """The condition's share of the head: added to the input, and modulation of every block."""

    added: Tensor
    modulation: Tensor


class SigmaFeatures(nn.Module):
    """Fourier features of c_noise, fixed frequencies from 1 to 32 over the useful range."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, c_noise: Tensor) -> Tensor:
        """Maps [...] to [..., num_features]."""
        half = self.num_features // 2
        ramp = torch.linspace(0, 1, half, device=c_noise.device, dtype=c_noise.dtype)
        angle = c_noise[..., None] * 32.0**ramp
        return torch.cat((angle.cos(), angle.sin()), dim=-1) * math.sqrt(2.0)


class HeadBlock(nn.Module):
    """Residual block: the condition scales, shifts and gates it, the noise level biases it.

    The condition's modulation has no axis of noise draws: at these widths memory traffic, not
    arithmetic, decides the time of a training step.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden_dim)
        self.sigma_up = nn.Linear(config.sigma_dim, config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.width)

    def forward(self, h: Tensor, modulation: Tensor, levels: Tensor) -> Tensor:
        """Updates h [..., W] under modulation [..., 3 W] and noise level features."""
        scale, shift, gate = modulation.chunk(3, dim=-1)
        normed = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)
        hidden = F.silu(self.up(normed) + self.sigma_up(levels))
        return torch.addcmul(h, 1 + gate, self.down(hidden))


class Head(nn.Module):
    """Denoiser D(x; sigma, condition) with EDM preconditioning.

    The condition is worked out once per tick and shared by all noise levels of that tick: its
    leading axes broadcast against those of x.
    """

    def __init__(self, config: HeadConfig, *, latent_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.sigma_features = SigmaFeatures(config.sigma_dim)
        self.latent_in = nn.Linear(latent_dim, width)
        self.condition_in = nn.Sequential(
            nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.sigma_in = nn.Linear(config.sigma_dim, config.sigma_dim)
        self.modulation_sizes = [3 * width] * config.num_blocks + [2 * width]
        num_modulations = sum(self.modulation_sizes)
        self.condition_modulation = nn.Linear(width, num_modulations)
        self.sigma_added = nn.Linear(config.sigma_dim, width, bias=False)
        self.blocks = nn.ModuleList(HeadBlock(config) for _ in range(config.num_blocks))
        self.out = nn.Linear(width, latent_dim)
        # Adaptive layers start neutral and the output at zero, so D starts as c_skip x; the
        # condition also enters by addition, so it matters from the second step on.
        for layer in (self.condition_modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(self, condition: Tensor) -> HeadContext:
        """What the condition [..., Z + V] contributes at every noise level."""
        added = self.condition_in(condition)
        return HeadContext(added, self.condition_modulation(F.silu(added)))

    def forward(self, x: Tensor, sigma: Tensor, context: HeadContext) -> Tensor:
        """Estimates the clean latent.

        Args:
            x: noisy latents [..., D].
            sigma: noise levels, broadcastable to the leading axes of x.
            context: result of `prepare`; its leading axes broadcast to those of x.
        """
        sigma = sigma.to(x.dtype)[..., None]
        c_skip, c_out, c_in, c_noise = precondition(sigma, self.config.sigma_data)
        levels = F.silu(self.sigma_in(self.sigma_features(c_noise[..., 0])))
        *modulations, last = context.modulation.split(self.modulation_sizes, dim=-1)
        h = self.latent_in(c_in * x) + self.sigma_added(levels) + context.added
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = block(h, modulation, levels)
        scale, shift = last.chunk(2, dim=-1)
        h = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)
        return c_skip * x + c_out * self.out(F.silu(h))


class Uncertainty(nn.Module):
    """Learned log variance u(sigma) of the denoising error (2312.02696, section 2.2).

    It belongs to training and never changes what the head returns.
    """

    def __init__(self, num_features: int = 64) -> None:
        super().__init__()
        self.features = SigmaFeatures(num_features)
        self.out = nn.Linear(num_features, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        """Maps noise levels [...] to u [...]."""
        return self.out(self.features(sigma.clamp_min(MIN_SIGMA).log() / 4.0))[..., 0]
