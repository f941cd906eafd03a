"""Widens the pan of a drawn latent, and takes that back.

What a model answers where it is not sure lies nearer the middle than what is, and more so at the
sides. So the odd dimensions are widened, by a gain that grows with how far to a side they say.
Legend: `...` any leading axes, O odd dimensions, normalised to unit deviation.
"""

import torch
from torch import Tensor

from spatial_v2a.sampler_config import SamplerConfig

# Farther out, where next to nothing was drawn when the gain was chosen, it grows no more.
LARGEST_RMS = 2.5
NEWTON_STEPS = 10


def widened(odd: Tensor, config: SamplerConfig) -> Tensor:
    """Normalised odd dimensions [..., O] as they are decoded: times gain + curve r^2, r their RMS.

    Mirroring commutes with it: the gain is the same for both signs.
    """
    return odd * _gain(_rms(odd), config)


def narrowed(odd: Tensor, config: SamplerConfig) -> Tensor:
    """The inverse of `widened`; all 0 where `pan_gain` and `pan_curve` left nothing."""
    wide = _rms(odd)
    # The RMS that widened to `wide` is the root of an increasing function: Newton from above.
    rms = wide / max(config.pan_gain, 1e-6)
    if config.pan_curve:
        rms = torch.minimum(rms, (wide / config.pan_curve).pow(1 / 3))
    for _ in range(NEWTON_STEPS if config.pan_curve else 0):
        slope = config.pan_gain + 3 * config.pan_curve * rms.square()
        excess = rms * (config.pan_gain + config.pan_curve * rms.square()) - wide
        rms = rms - excess / slope.clamp_min(1e-6)
    # Beyond the end of the curve it is a plain gain.
    largest = torch.full_like(rms, LARGEST_RMS)
    rms = torch.where(wide > largest * _gain(largest, config), largest, rms)
    gain = _gain(rms, config)
    return torch.where(gain > 0, odd / gain.clamp_min(1e-6), 0.0)


def _rms(odd: Tensor) -> Tensor:
    return odd.square().mean(-1, keepdim=True).sqrt()


def _gain(rms: Tensor, config: SamplerConfig) -> Tensor:
    return config.pan_gain + config.pan_curve * rms.clamp_max(LARGEST_RMS).square()
