"""Is a sound in time with a curve of the picture? How well it agrees now, and shifted.

Legend: T ticks, G shifts from -MAX_SHIFT_TICKS to MAX_SHIFT_TICKS, positive when sound is late.
"""

import numpy as np

from spatial_v2a.timing import TIMING

MAX_SHIFT_TICKS = TIMING.tick_hz
# Sound up to 45 ms early and 125 ms late passes unnoticed (ITU-R BT.1359): -1 .. 3 ticks.
EARLIEST_TICKS, LATEST_TICKS = -1, 3
# Shifts that are compared with: clearly out of time.
MIN_FAR_TICKS = 6
# Fewer shared ticks make wild correlations.
MIN_SHARED_TICKS = TIMING.tick_hz
# Both ends of a change: 0.1 s before and after.
SPEED_TICKS = 3


def shifted_correlation(picture_T: np.ndarray, sound_T: np.ndarray) -> np.ndarray:
    """Pearson's r of two curves with holes (NaN) at every shift of the sound [G].

    0 where too little is shared or a curve does not move: no agreement.
    """
    shifts = range(-MAX_SHIFT_TICKS, MAX_SHIFT_TICKS + 1)
    return np.array([_correlation(*_overlap(picture_T, sound_T, shift)) for shift in shifts])


def contrast(r_G: np.ndarray) -> float:
    """Agreement in time minus the mean agreement out of time; 0 for what is unrelated.

    In time is the best of the shifts that pass unnoticed; every other shift gets the best of as
    many neighbours, so that chance has no advantage.
    """
    width = LATEST_TICKS - EARLIEST_TICKS + 1
    best_G = np.lib.stride_tricks.sliding_window_view(r_G, width).max(axis=-1)
    shift_G = np.arange(len(best_G)) - MAX_SHIFT_TICKS - EARLIEST_TICKS
    return float(best_G[shift_G == 0][0] - best_G[np.abs(shift_G) >= MIN_FAR_TICKS].mean())


def speed(curve_T: np.ndarray) -> np.ndarray:
    """Absolute change over 2 SPEED_TICKS around each tick [T]; NaN at the ends and beside holes.

    Without its sign it does not know left from right: swapped channels stay in time.
    """
    speed_T = np.full(len(curve_T), np.nan)
    reach = SPEED_TICKS
    if len(curve_T) > 2 * reach:
        speed_T[reach:-reach] = np.abs(curve_T[2 * reach :] - curve_T[: -2 * reach])
    return speed_T


def _overlap(x_T: np.ndarray, y_T: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    length = min(len(x_T), len(y_T))
    first, last = max(0, -shift), length - max(0, shift)
    if last <= first:
        return x_T[:0], y_T[:0]
    return x_T[first:last], y_T[first + shift : last + shift]


def _correlation(x_T: np.ndarray, y_T: np.ndarray) -> float:
    is_shared_T = ~np.isnan(x_T) & ~np.isnan(y_T)
    if is_shared_T.sum() < MIN_SHARED_TICKS:
        return 0.0
    x, y = x_T[is_shared_T], y_T[is_shared_T]
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 1e-9 else 0.0
