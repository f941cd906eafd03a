"""Level panning: the engine's measured law and its inverse, gains, a latent's gain curve.

What a model answers where it is not sure lies nearer the middle than what is, and more so at the
sides. So the odd dimensions of a latent are widened, by a gain that grows with how far to a side
they say (`widened`, and `narrowed`, which takes that back).

Legend: L samples, C audio channels (left, right), T ticks, O odd dimensions of unit deviation.
Sign: azimuth and level difference are POSITIVE TO THE LEFT (left louder than right).
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from spatial_v2a.config import SamplerConfig

# Level difference left minus right of a source at a fixed distance, measured on the game engine
# (ViZDoom 1.3.2, OpenAL Soft); it mirrors exactly, and a source behind is panned like one in front.
PAN_LAW_DEG = (0.0, 15.0, 26.0, 42.0, 60.0)
PAN_LAW_DB = (0.0, 7.0, 13.0, 25.0, 50.0)

# Beyond 30 dB one channel is inaudible: a larger difference carries no position.
MAX_LEVEL_DIFFERENCE_DB = 30.0
# Added to the power of both channels, so that two channels of hiss are not a position.
FLOOR_DBFS = -75.0


def law_level_difference_db(azimuth_deg: np.ndarray) -> np.ndarray:
    """Level difference the engine gives a source at a bearing.

    Args:
        azimuth_deg: bearing in degrees, any shape, -180..180, positive left.

    Returns:
        Left minus right in dB, -50..50.
    """
    azimuth = np.asarray(azimuth_deg, dtype=np.float64)
    magnitude = np.abs(azimuth)
    folded = np.minimum(magnitude, 180.0 - magnitude)
    return np.sign(azimuth) * np.interp(folded, PAN_LAW_DEG, PAN_LAW_DB)


def law_azimuth_deg(difference_db: np.ndarray) -> np.ndarray:
    """Bearing of a source in front that the engine would give this level difference.

    Args:
        difference_db: left minus right in dB, any shape; beyond 50 dB the answer stays at 60.

    Returns:
        Degrees, -60..60, positive left.
    """
    difference = np.asarray(difference_db, dtype=np.float64)
    return np.sign(difference) * np.interp(np.abs(difference), PAN_LAW_DB, PAN_LAW_DEG)


def pan_gains(difference_db: np.ndarray) -> np.ndarray:
    """Channel gains with g_L / g_R = 10^(d/20) and g_L^2 + g_R^2 = 2 (the centre keeps 1, 1).

    Args:
        difference_db: left minus right in dB, any shape.

    Returns:
        Gains [..., 2], left then right.
    """
    ratio = 10.0 ** (np.asarray(difference_db, dtype=np.float64) / 20.0)
    scale = np.sqrt(2.0 / (1.0 + ratio**2))
    return np.stack([ratio * scale, scale], axis=-1)


def pan_mono(mono_L: np.ndarray, azimuth_deg_T: np.ndarray, *, samples_per_tick: int) -> np.ndarray:
    """Pans mono sound along a path of bearings through the engine's law.

    Args:
        mono_L: sound, length at most T * samples_per_tick.
        azimuth_deg_T: bearing per tick in degrees, positive left; gains move linearly between
            the middles of ticks.
        samples_per_tick: audio samples in one tick.

    Returns:
        Stereo [L, 2], float32.
    """
    gains_TC = pan_gains(law_level_difference_db(azimuth_deg_T))
    middles_T = (np.arange(len(gains_TC)) + 0.5) * samples_per_tick
    at_L = np.arange(len(mono_L))
    gains_LC = np.stack([np.interp(at_L, middles_T, gains_TC[:, c]) for c in (0, 1)], axis=-1)
    return (gains_LC * mono_L[:, None]).astype(np.float32)


# Farther out, where next to nothing was drawn when the gain was chosen, it grows no more.
LARGEST_RMS = 2.5
NEWTON_STEPS = 10


def widened(odd: "Tensor", config: "SamplerConfig") -> "Tensor":
    """Normalised odd dimensions [..., O] as they are decoded: times gain + curve r^2, r their RMS.

    Mirroring commutes with it: the gain is the same for both signs.
    """
    return odd * _gain(_rms(odd), config)


def narrowed(odd: "Tensor", config: "SamplerConfig") -> "Tensor":
    """The inverse of `widened`; all 0 where `pan_gain` and `pan_curve` left nothing."""
    # Who only pans need not wait for it: commands refuse mistakes before it is loaded.
    import torch

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


def _rms(odd: "Tensor") -> "Tensor":
    return odd.square().mean(-1, keepdim=True).sqrt()


def _gain(rms: "Tensor", config: "SamplerConfig") -> "Tensor":
    return config.pan_gain + config.pan_curve * rms.clamp_max(LARGEST_RMS).square()
