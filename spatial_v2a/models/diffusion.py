"""Mathematics of diffusion (EDM; Karras et al., 2206.00364) and of Easy Consistency Tuning.

The latter is 2406.14548: second noise level, weights, distance.

Latents are normalised to unit variance before they come here, so `sigma_data` is 1.0 everywhere;
published constants for sigma_data 0.5 are moved by ln 2 (see the configs in training).
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Below this noise level the network's noise input stops changing (c_out is already 0 there).
MIN_SIGMA = 1e-5


class Preconditioning(NamedTuple):
    """The four EDM scalings, each of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """EDM scalings; D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    At sigma 0 they give D(x; 0) = x exactly, which is the boundary condition of consistency
    models; at sigma_min 0.002 it holds to within 0.2 percent of sigma_data.
    """
    # 2206.00364, table 1, last column.
    total = sigma.square() + sigma_data**2
    root = total.sqrt()
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / root,
        c_in=1.0 / root,
        c_noise=sigma.clamp_min(MIN_SIGMA).log() / 4.0,
    )


def lognormal_sigma(normal: Tensor, *, p_mean: float, p_std: float) -> Tensor:
    """Noise levels with ln sigma ~ N(p_mean, p_std^2), from standard normal draws."""
    # 2206.00364, table 1, noise distribution.
    return (normal * p_std + p_mean).exp()


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = 1 / c_out^2: gives every noise level unit loss at the start of training."""
    # 2206.00364, table 1, loss weighting.
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def uncertainty_weighted(error: Tensor, u: Tensor) -> Tensor:
    """error * exp(-u) + u, elementwise; u is the learned log variance of the error."""
    # 2312.02696 (EDM2), eq. 21.
    return error * torch.exp(-u) + u


def consistency_stage(fraction: float, num_stages: int) -> int:
    """Stage of the step schedule at `fraction` (0..1) of training; a pure function of the step."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction {fraction} must lie in [0, 1]")
    return min(int(fraction * num_stages), num_stages - 1)


def nearer_sigma(
    t: Tensor, stage: int, *, q: float = 4.0, k: float = 8.0, b: float = 1.0
) -> Tensor:
    """r(t, stage) = t (1 - q^-(stage+1) (b + k sigmoid(-t))), at least 0 and below t.

    While r is 0 the loss is denoising; as the stage grows r approaches t.
    """
    # 2406.14548, eq. 14 with n(t) of section 3.2 (reference: q 4, k 8, b 1).
    return (t * (1.0 - q ** -(stage + 1) * (b + k * torch.sigmoid(-t)))).clamp_min(0.0)


def consistency_weight(t: Tensor, sigma_data: float) -> Tensor:
    """w(t) = 1 / c_out(t): every noise level moves the network's own output equally.

    The distance below grows linearly with the difference, so this is the square root of the
    EDM loss weight.
    """
    return (t.square() + sigma_data**2).sqrt() / (t * sigma_data)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(|d|^2 + c^2) - c over the last axis (2310.14189, eq. 8)."""
    return (difference.square().sum(-1) + c**2).sqrt() - c
