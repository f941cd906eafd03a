"""The benchmark's figures: per-clip sums, the figure they combine to, and its bootstrap interval.

Every figure here is a function of sums over windows or clips. Keeping the sums per clip makes the
pooled figure exact and lets the bootstrap over clips resample sums instead of sound.
Legend: N clips, S sums, R resamples, W windows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spatial_v2a.audio.panning import MAX_LEVEL_DIFFERENCE_DB, law_azimuth_deg

OFF_CENTRE_DEG = 5.0
HEARD_DIFFERENCE_DB = 1.0
MAX_AZIMUTH_ERROR_DEG = 90.0
NUM_RESAMPLES = 2000

Combine = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % bootstrap interval over clips.

    Attributes:
        value: the figure over all clips; NaN when nothing could be scored.
        low, high: 2.5th and 97.5th percentile over resampled sets of clips.
        count: number of windows (or clips) behind it.
    """

    value: float
    low: float
    high: float
    count: int


def bootstrap_figure(
    sums_NS: np.ndarray, combine: Combine, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Figure:
    """Percentile bootstrap over clips (Efron 1979) of a figure made of per-clip sums.

    Args:
        sums_NS: sums per clip, [N, S]; column 0 counts the windows behind them.
        combine: maps summed rows [R, S] to figures [R]; NaN where it is not defined.
    """
    sums_NS = np.asarray(sums_NS, dtype=np.float64)
    num_clips = len(sums_NS)
    if num_clips == 0 or sums_NS[:, 0].sum() == 0:
        return Figure(float("nan"), float("nan"), float("nan"), 0)
    value = float(combine(sums_NS.sum(axis=0, keepdims=True))[0])
    generator = np.random.default_rng(seed)
    drawn_RN = generator.multinomial(num_clips, np.full(num_clips, 1 / num_clips), num_resamples)
    drawn = combine(drawn_RN @ sums_NS)
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Figure(value, float(low), float(high), int(sums_NS[:, 0].sum()))


def ratio(sums_RS: np.ndarray) -> np.ndarray:
    """Second sum over the first: a share, or a mean."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums_RS[:, 1] / sums_RS[:, 0]


def moments(x_W: np.ndarray, y_W: np.ndarray) -> np.ndarray:
    """Sums [n, x, y, xx, yy, xy] of one clip, for `correlation` and `slope`."""
    return np.array(
        [len(x_W), x_W.sum(), y_W.sum(), (x_W**2).sum(), (y_W**2).sum(), (x_W * y_W).sum()],
        dtype=np.float64,
    )


def _central(sums_RS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of x and y and their covariance from the sums of `moments`."""
    count, x, y, xx, yy, xy = sums_RS.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = x / count, y / count
        return xx / count - mean_x**2, yy / count - mean_y**2, xy / count - mean_x * mean_y


def correlation(sums_RS: np.ndarray) -> np.ndarray:
    """Pearson's r from the sums of `moments`; 0 where y is constant (it tells nothing)."""
    var_x, var_y, cov = _central(sums_RS)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip(cov / np.sqrt(var_x * var_y), -1.0, 1.0)
    r = np.where(var_y < 1e-9, 0.0, r)
    return np.where(var_x < 1e-9, np.nan, r)


def slope(sums_RS: np.ndarray) -> np.ndarray:
    """Least-squares slope of y on x from the sums of `moments`."""
    var_x, _, cov = _central(sums_RS)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(var_x < 1e-9, np.nan, cov / var_x)


def sign_sums(difference_db_W: np.ndarray, azimuth_deg_W: np.ndarray) -> np.ndarray:
    """Sums [windows off centre, windows on the right side] of one clip.

    A window counts when |azimuth| > 5 deg; under 1 dB of level difference it is wrong.
    """
    off_centre = np.abs(azimuth_deg_W) > OFF_CENTRE_DEG
    heard = np.abs(difference_db_W) >= HEARD_DIFFERENCE_DB
    right = heard & (np.sign(difference_db_W) == np.sign(azimuth_deg_W))
    return np.array([off_centre.sum(), (off_centre & right).sum()], dtype=np.float64)


def within_reach_deg(azimuth_deg: np.ndarray) -> np.ndarray:
    """Bearings cut to those that the panning law gives within MAX_LEVEL_DIFFERENCE_DB."""
    reach_deg = float(law_azimuth_deg(np.array(MAX_LEVEL_DIFFERENCE_DB)))
    return np.clip(azimuth_deg, -reach_deg, reach_deg)


def azimuth_error_sums(
    difference_db_W: np.ndarray, azimuth_deg_W: np.ndarray, audible_W: np.ndarray
) -> np.ndarray:
    """Sums [windows, absolute error in degrees] of one clip, through the engine's panning law.

    Bearings beyond the law's reach for a clipped difference are compared at its end. A window
    that is silent where the source sounds counts MAX_AZIMUTH_ERROR_DEG.
    """
    error = np.abs(law_azimuth_deg(difference_db_W) - within_reach_deg(azimuth_deg_W))
    error = np.where(audible_W, error, MAX_AZIMUTH_ERROR_DEG)
    return np.array([len(error), error.sum()], dtype=np.float64)


def clip_correlation_sums(difference_db_W: np.ndarray, azimuth_deg_W: np.ndarray) -> np.ndarray:
    """Sums [clips, correlation] of one clip; none when it has too few or too still windows."""
    if len(azimuth_deg_W) < 8 or azimuth_deg_W.std() < 3.0:
        return np.zeros(2)
    r = correlation(moments(azimuth_deg_W, difference_db_W)[None])[0]
    return np.array([1.0, r])


def mirror_sums(difference_db_W: np.ndarray, mirrored_db_W: np.ndarray) -> np.ndarray:
    """Sums [windows, swapped] of one clip: of the windows at least 1 dB to a side, how many swap.

    A window swaps when the mirrored picture's sound lies at least 1 dB on the other side.
    """
    sided = np.abs(difference_db_W) >= HEARD_DIFFERENCE_DB
    swapped = (np.sign(mirrored_db_W) == -np.sign(difference_db_W)) & (
        np.abs(mirrored_db_W) >= HEARD_DIFFERENCE_DB
    )
    return np.array([sided.sum(), (sided & swapped).sum()], dtype=np.float64)
