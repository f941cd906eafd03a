"""Easy Consistency Tuning mathematics: second noise level, weights, distance (2406.14548)."""

import torch
from torch import Tensor


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
