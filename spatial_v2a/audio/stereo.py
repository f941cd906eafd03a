"""How stereo a sound really is: level, level difference, mid and side, share left / right.

All of it from energies, three numbers a tick or window, so hours of sound are measured as they
stream. Legend: L samples, C audio channels (left, right), T ticks or W windows, E energies (left^2,
right^2, product), `...` any leading axes.
Sign: level difference is POSITIVE TO THE LEFT (left louder than right), as in panning.py.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from spatial_v2a.audio.panning import FLOOR_DBFS, MAX_LEVEL_DIFFERENCE_DB
from spatial_v2a.errors import NotSound

# A tick counts as left or right when one channel is louder by this much, and as silent below this
# level; a level difference of 3 dB is where a source is plainly heard off centre.
SIDED_DB = 3.0
SILENT_DBFS = -60.0
# What a digital silence reads, instead of minus infinity.
NOTHING_DBFS = -120.0
# This many samples at full scale in a row are a cut-off wave; a single one is a normalised peak.
MIN_CLIP_RUN = 3
# 40 dB over full scale: no sound that was meant to be heard.
MAX_SAMPLE = 100.0


def checked_sound(audio: np.ndarray, *, where: str) -> np.ndarray:
    """The samples themselves, of any shape, if they are finite and within `MAX_SAMPLE`.

    Raises:
        NotSound: they are not; `where` says of what.
    """
    # NaN compares as false, so that one comparison finds everything.
    if not np.abs(audio).max(initial=0.0) <= MAX_SAMPLE:
        raise NotSound(f"{where} holds samples that are not finite or 40 dB over full scale")
    return audio


@dataclass(frozen=True)
class StereoSummary:
    """Stereo of a whole sound.

    Attributes:
        mid_dbfs, side_dbfs: RMS of (L + R) / 2 and (L - R) / 2 in dB below full scale.
        left, centre, right: share of the ticks that are not silent, summing to 1 (0 in silence).
        silent: share of all ticks below SILENT_DBFS.
    """

    mid_dbfs: float
    side_dbfs: float
    left: float
    centre: float
    right: float
    silent: float

    @property
    def side_over_mid_db(self) -> float:
        """Side level minus mid level in dB; duplicated mono is near -120."""
        return self.side_dbfs - self.mid_dbfs


def tick_energies(audio_LC: np.ndarray, *, samples_per_tick: int) -> np.ndarray:
    """Mean energies of each tick; an incomplete last tick is averaged over what it has.

    Args:
        audio_LC: stereo sound [L, 2].
        samples_per_tick: samples in one tick.

    Returns:
        [T, 3] float64: mean of left^2, right^2 and left * right.
    """
    left_L, right_L = audio_LC[:, 0].astype(np.float64), audio_LC[:, 1].astype(np.float64)
    products_LE = np.stack([left_L**2, right_L**2, left_L * right_L], axis=-1)
    starts = np.arange(0, len(audio_LC), samples_per_tick)
    if len(starts) == 0:
        return np.zeros((0, 3))
    counts = np.diff(np.append(starts, len(audio_LC)))
    return np.add.reduceat(products_LE, starts, axis=0) / counts[:, None]


def window_energies(audio_LC: np.ndarray, *, window_samples: int) -> np.ndarray:
    """Mean energies of consecutive windows [W, 3]; an incomplete last one is dropped."""
    whole = len(audio_LC) // window_samples * window_samples
    return tick_energies(audio_LC[:whole], samples_per_tick=window_samples)


def smooth_energies(energies_TE: np.ndarray, *, window_ticks: int) -> np.ndarray:
    """Mean over `window_ticks` (odd) ticks centred on each; fewer at the ends."""
    if window_ticks % 2 == 0:
        raise ValueError(f"window_ticks is {window_ticks}; give an odd number, it is centred")
    half = window_ticks // 2
    sums = np.vstack([np.zeros((1, energies_TE.shape[1])), np.cumsum(energies_TE, axis=0)])
    ends = np.arange(len(energies_TE))
    first, last = np.maximum(ends - half, 0), np.minimum(ends + half + 1, len(energies_TE))
    return (sums[last] - sums[first]) / (last - first)[:, None]


def level_dbfs(energies: np.ndarray) -> np.ndarray:
    """RMS level over both channels in dB below full scale [...], -120 at least, of [..., E]."""
    return _to_db((energies[..., 0] + energies[..., 1]) / 2)


def sound_level_dbfs(audio: np.ndarray) -> float:
    """RMS level of a whole sound of any shape in dB below full scale, -120 at least."""
    power = np.square(audio, dtype=np.float64).mean() if len(audio) else 0.0
    return float(_to_db(power))


def level_difference_db(energies: np.ndarray, *, floor_dbfs: float = FLOOR_DBFS) -> np.ndarray:
    """Left minus right in dB [...] of [..., E], clipped to +-30; silence reads 0.

    10 log10((P_L + f) / (P_R + f)) with P the mean squares and f the floor's power.
    """
    floor = 10 ** (floor_dbfs / 10)
    ratio = (energies[..., 0] + floor) / (energies[..., 1] + floor)
    limit = MAX_LEVEL_DIFFERENCE_DB
    return np.clip(10 * np.log10(ratio), -limit, limit)


def mid_side_dbfs(energies_TE: np.ndarray) -> tuple[float, float]:
    """RMS levels of (L + R) / 2 and (L - R) / 2 over all ticks, in dB below full scale."""
    if len(energies_TE) == 0:
        return NOTHING_DBFS, NOTHING_DBFS
    left, right, cross = energies_TE.mean(axis=0)
    mid, side = (left + right + 2 * cross) / 4, (left + right - 2 * cross) / 4
    return float(_to_db(np.asarray(mid))), float(_to_db(np.asarray(side)))


def pan_curve(energies_TE: np.ndarray, *, window_ticks: int = 7) -> np.ndarray:
    """Level difference in dB over time [T], positive left; NaN where it is silent.

    Args:
        energies_TE: from `tick_energies` or a `StereoMeter`.
        window_ticks: odd length of the centred smoothing window; 7 ticks are 0.23 s at 30 Hz.
    """
    smooth_TE = smooth_energies(energies_TE, window_ticks=window_ticks)
    return np.where(level_dbfs(smooth_TE) > SILENT_DBFS, level_difference_db(smooth_TE), np.nan)


def summarize(energies_TE: np.ndarray) -> StereoSummary:
    """The honest stereo figures of a whole sound."""
    mid, side = mid_side_dbfs(energies_TE)
    audible_T = level_dbfs(energies_TE) > SILENT_DBFS
    difference_T = level_difference_db(energies_TE)[audible_T]
    count = max(1, len(difference_T))
    left = float((difference_T >= SIDED_DB).sum() / count)
    right = float((difference_T <= -SIDED_DB).sum() / count)
    return StereoSummary(
        mid_dbfs=mid,
        side_dbfs=side,
        left=left,
        centre=(1.0 - left - right) if len(difference_T) else 0.0,
        right=right,
        silent=float(1.0 - audible_T.mean()) if len(audible_T) else 0.0,
    )


class StereoMeter:
    """Collects tick energies while the sound streams by; 24 bytes per tick."""

    def __init__(self) -> None:
        self._values = array("d")

    def add(self, audio_LC: np.ndarray) -> None:
        """Adds one tick of sound [L, 2]."""
        self._values.extend(tick_energies(audio_LC, samples_per_tick=len(audio_LC))[0])

    @property
    def energies_TE(self) -> np.ndarray:
        """What was measured so far [T, 3]."""
        return np.array(self._values).reshape(-1, 3)


def _to_db(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 10 ** (NOTHING_DBFS / 10)))
