"""HelixBench Spatial: is the sound on the side on which the object is seen?

HelixWorld (arXiv 2609.38123); STAGEBENCH.md, point 11. Mono scores 0, swapped channels the
negative. Published, on their own clips: HelixWorld 41.8, ThinkSound 14.8, EchoWM 12.6, LTX-2.3 1.0,
AudioX -5.7, PrismAudio -9.5.
Legend: T ticks, P points at 10 Hz, W windows, L samples, C audio channels.
"""

import numpy as np

from spatial_v2a.audio.stereo import SILENT_DBFS
from spatial_v2a.timing import TIMING

POINT_HZ = 10
WINDOW_SAMPLES = TIMING.sample_rate_hz // 10
HOP_SAMPLES = TIMING.sample_rate_hz // 20
# The side begins so far from the middle: of the picture in half widths, of the sound in power.
SEEN_SIDE, HEARD_SIDE = 0.2, 0.1
# A clip counts with so many lateral points in a row.
MIN_CONSECUTIVE = 4


def power_balance(audio_LC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(E_R - E_L) / (E_R + E_L) of windows of 100 ms every 50 ms.

    Args:
        audio_LC: [L, 2], full scale 1.

    Returns:
        Middles of the windows in seconds, balances -1 (left) .. 1 (right), 0 in silence, and
        levels in dBFS, [W] each.
    """
    num_windows = max(0, (len(audio_LC) - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
    energy_LC = np.concatenate([np.zeros((1, 2)), np.cumsum(audio_LC.astype(np.float64) ** 2, 0)])
    first_W = HOP_SAMPLES * np.arange(num_windows)
    power_WC = (energy_LC[first_W + WINDOW_SAMPLES] - energy_LC[first_W]) / WINDOW_SAMPLES
    level_W = 10 * np.log10(np.maximum(power_WC.mean(axis=1), 1e-20))
    total_W = power_WC.sum(axis=1)
    balance_W = (power_WC[:, 1] - power_WC[:, 0]) / np.maximum(total_W, 1e-20)
    balance_W[level_W <= SILENT_DBFS] = 0.0
    return (first_W + WINDOW_SAMPLES / 2) / TIMING.sample_rate_hz, balance_W, level_W


def helix_sums(audio_LC: np.ndarray, seen_T: np.ndarray) -> np.ndarray:
    """Sums [clips that count, their score in per cent] of one clip, for `metrics.ratio`.

    Args:
        audio_LC: sound of the clip, [L, 2].
        seen_T: 2 x / W - 1 of the object's box centre per tick, -1 (left) .. 1; NaN without a box.
    """
    time_W, balance_W, _ = power_balance(audio_LC)
    seen_P = seen_T[:: TIMING.tick_hz // POINT_HZ]
    lateral_P = np.abs(np.nan_to_num(seen_P)) > SEEN_SIDE
    if not len(time_W) or not _has_run(lateral_P, MIN_CONSECUTIVE):
        return np.zeros(2)
    heard_P = np.interp(np.arange(len(seen_P)) / POINT_HZ, time_W, balance_W)
    heard_side_P = np.where(np.abs(heard_P) > HEARD_SIDE, np.sign(heard_P), 0.0)
    agreement_P = heard_side_P[lateral_P] * np.sign(seen_P[lateral_P])
    return np.array([1.0, 100.0 * agreement_P.mean()])


def audible_sums(audio_LC: np.ndarray, seen_T: np.ndarray) -> np.ndarray:
    """Sums [ticks with an object in view, those of them that sound] of one clip.

    Args:
        audio_LC, seen_T: as for `helix_sums`.
    """
    time_W, _, level_W = power_balance(audio_LC)
    in_view_T = ~np.isnan(seen_T)
    if not len(time_W):
        return np.zeros(2)
    middle_T = (np.arange(len(seen_T)) + 0.5) / TIMING.tick_hz
    nearest_T = np.abs(time_W[None] - middle_T[:, None]).argmin(axis=1)
    audible_T = level_W[nearest_T] > SILENT_DBFS
    return np.array([in_view_T.sum(), (in_view_T & audible_T).sum()], dtype=np.float64)


def _has_run(flags_P: np.ndarray, length: int) -> bool:
    """Whether so many flags in a row are set."""
    if len(flags_P) < length:
        return False
    return bool(np.lib.stride_tricks.sliding_window_view(flags_P, length).all(axis=1).any())
