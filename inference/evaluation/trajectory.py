"""The pan as a curve over time: error at every tick, direction of movement, lag, distance.

Everything is taken from windows of CURVE_TICKS ticks centred on each tick, in the ground truth's
bearing and in the sound's level difference alike, so that smoothing is no lag.
Legend: T ticks, L samples, C channels, S sums, R resamples, K lags.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from spatial_v2a.audio.panning import law_azimuth_deg
from spatial_v2a.audio.stereo import level_dbfs, level_difference_db, window_energies
from spatial_v2a.inference.evaluation import metrics
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS, ClipTruth

CURVE_TICKS = 7
# A movement: the source's bearing changes by at least this much within half a second.
MOVE_TICKS = 15
MOVE_DEG = 5.0
# A smaller change of the heard bearing counts as no movement, which is wrong.
HEARD_MOVE_DEG = 1.0
MAX_LAG_TICKS = 15
LAGS_TICKS = np.arange(-MAX_LAG_TICKS, MAX_LAG_TICKS + 1)
NUM_LAG_SUMS = 1 + len(LAGS_TICKS) * 6
# A lag is reported when the curves correlate at least this much where they fit best.
MIN_LAG_CORRELATION = 0.2
# Distance is scored in clips whose source comes at least this much nearer or farther.
MIN_DISTANCE_RATIO = 1.5


@dataclass(frozen=True)
class SoundCurve:
    """A sound over time.

    Attributes:
        azimuth_T: bearing heard at each tick in degrees, through the engine's law.
        level_dbfs_T: RMS level over both channels.
    """

    azimuth_T: np.ndarray
    level_dbfs_T: np.ndarray

    @property
    def audible_T(self) -> np.ndarray:
        """Where it is at least AUDIBLE_DBFS."""
        return self.level_dbfs_T >= AUDIBLE_DBFS


def sound_curve(audio_LC: np.ndarray, *, num_ticks: int) -> SoundCurve:
    """Level difference and level of centred windows at each tick (shorter ones at the ends)."""
    energies_TE = window_energies(audio_LC, window_samples=TIMING.samples_per_tick)[:num_ticks]
    energies_TE = centred_mean(np.pad(energies_TE, ((0, num_ticks - len(energies_TE)), (0, 0))))
    azimuth_T = law_azimuth_deg(level_difference_db(energies_TE))
    return SoundCurve(azimuth_T, level_dbfs(energies_TE))


def centred_mean(values: np.ndarray) -> np.ndarray:
    """Mean over CURVE_TICKS ticks centred on each one along the first axis; NaN spreads."""
    half = CURVE_TICKS // 2
    padding = [(half, half)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(np.asarray(values, dtype=np.float64), padding, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, CURVE_TICKS, axis=0)
    return windows.mean(axis=-1)


def true_curve_deg(truth: ClipTruth, truth_sound: SoundCurve) -> np.ndarray:
    """Bearing of the source in the picture at each tick [T], NaN where it is not scored."""
    azimuth_T = centred_mean(truth.screen_azimuth_T)
    return np.where(truth_sound.audible_T, azimuth_T, np.nan)


def squared_error_sums(sound: SoundCurve, true_T: np.ndarray) -> np.ndarray:
    """Sums [ticks, squared error in deg^2] of one clip; silence counts the maximum error."""
    scored_T = ~np.isnan(true_T)
    error_T = sound.azimuth_T - metrics.within_reach_deg(true_T)
    error_T = np.where(sound.audible_T, error_T, metrics.MAX_AZIMUTH_ERROR_DEG)[scored_T]
    return np.array([len(error_T), (error_T**2).sum()])


def bias_sums(sound: SoundCurve, true_T: np.ndarray) -> np.ndarray:
    """Sums [ticks, signed error in deg, positive to the left] of one clip, where it sounds."""
    scored_T = ~np.isnan(true_T) & sound.audible_T
    error_T = sound.azimuth_T - metrics.within_reach_deg(true_T)
    return np.array([scored_T.sum(), error_T[scored_T].sum()], dtype=np.float64)


def direction_sums(sound: SoundCurve, true_T: np.ndarray) -> np.ndarray:
    """Sums [movements, movements in the right direction] of one clip."""
    true_step_T = true_T[MOVE_TICKS:] - true_T[:-MOVE_TICKS]
    step_T = sound.azimuth_T[MOVE_TICKS:] - sound.azimuth_T[:-MOVE_TICKS]
    heard_T = sound.audible_T[MOVE_TICKS:] & sound.audible_T[:-MOVE_TICKS]
    moves_T = np.abs(np.nan_to_num(true_step_T)) >= MOVE_DEG
    right_T = heard_T & (np.abs(step_T) >= HEARD_MOVE_DEG) & (step_T * true_step_T > 0)
    return np.array([moves_T.sum(), (moves_T & right_T).sum()], dtype=np.float64)


def lag_sums(sound: SoundCurve, true_T: np.ndarray) -> np.ndarray:
    """Sums of one clip: ticks, then the moments of true and heard bearing at every lag.

    Both curves are centred within the clip, so that where it lies says nothing. At lag k the
    bearing heard at tick t + k stands against the true one at tick t: late sound, positive lag.
    A clip whose source hardly moves adds nothing.
    """
    scored_T = ~np.isnan(true_T)
    sums = np.zeros(NUM_LAG_SUMS)
    if scored_T.sum() < 2 * MAX_LAG_TICKS or np.nanstd(true_T) < 3.0:
        return sums
    num_ticks = len(true_T)
    for index, lag in enumerate(LAGS_TICKS):
        at = np.flatnonzero(scored_T)
        at = at[(at + lag >= 0) & (at + lag < num_ticks)]
        at = at[sound.audible_T[at + lag]]
        if len(at) < MAX_LAG_TICKS:
            continue
        x, y = true_T[at], sound.azimuth_T[at + lag]
        sums[1 + 6 * index : 7 + 6 * index] = metrics.moments(x - x.mean(), y - y.mean())
    sums[0] = scored_T.sum()
    return sums


def lag_ms(sums_RS: np.ndarray) -> np.ndarray:
    """Lag in milliseconds where the pooled curves correlate best; NaN if they never do.

    The maximum is refined by a parabola through its neighbours.
    """
    sums_RKS = sums_RS[:, 1:].reshape(len(sums_RS), len(LAGS_TICKS), 6)
    flat = metrics.correlation(sums_RKS.reshape(-1, 6))
    r_RK = np.nan_to_num(flat).reshape(len(sums_RS), len(LAGS_TICKS))
    best_R = r_RK.argmax(axis=1)
    inside_R = (best_R > 0) & (best_R < len(LAGS_TICKS) - 1)
    middle_R = np.clip(best_R, 1, len(LAGS_TICKS) - 2)
    rows = np.arange(len(r_RK))
    before, peak, after = (r_RK[rows, middle_R + k] for k in (-1, 0, 1))
    curvature = before - 2 * peak + after
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.where(curvature < -1e-12, 0.5 * (before - after) / curvature, 0.0)
    lag = (LAGS_TICKS[middle_R] + shift) * 1000.0 / TIMING.tick_hz
    return np.where(inside_R & (peak >= MIN_LAG_CORRELATION), lag, np.nan)


def root_mean(sums_RS: np.ndarray) -> np.ndarray:
    """Square root of the second sum over the first."""
    return np.sqrt(metrics.ratio(sums_RS))


def distance_sums(sound: SoundCurve, truth: ClipTruth, truth_sound: SoundCurve) -> np.ndarray:
    """Sums [n, x, y, xx, yy, xy] of one clip, x the octaves of distance and y the level in dB.

    Both are centred within the clip (classes differ in loudness), so the pooled slope is the
    change in dB per doubling of distance within a clip.
    """
    picked_T, octaves = _distance(sound, truth, truth_sound)
    if len(octaves) == 0:
        return np.zeros(6)
    level = sound.level_dbfs_T[picked_T]
    return metrics.moments(octaves - octaves.mean(), level - level.mean())


def rank_sums(sound: SoundCurve, truth: ClipTruth, truth_sound: SoundCurve) -> np.ndarray:
    """Sums [clips, Spearman correlation of level and distance] of one clip; 0 for a constant."""
    picked_T, octaves = _distance(sound, truth, truth_sound)
    if len(octaves) == 0:
        return np.zeros(2)
    level = sound.level_dbfs_T[picked_T]
    rho = 0.0 if np.ptp(level) < 1e-9 else float(spearmanr(octaves, level).statistic)
    return np.array([1.0, rho])


def _distance(
    sound: SoundCurve, truth: ClipTruth, truth_sound: SoundCurve
) -> tuple[np.ndarray, np.ndarray]:
    """Ticks of one clip in which distance is scored, and the octaves of distance there."""
    distance_T = centred_mean(truth.distance_T)
    picked_T = ~np.isnan(distance_T) & truth_sound.audible_T & sound.audible_T
    octaves = np.log2(np.maximum(distance_T[picked_T], 1.0))
    if len(octaves) < 2 * MOVE_TICKS or np.ptp(octaves) < np.log2(MIN_DISTANCE_RATIO):
        return picked_T, octaves[:0]
    return picked_T, octaves


def curve_sums(
    audio_LC: np.ndarray, truth_LC: np.ndarray, truth: ClipTruth
) -> dict[str, np.ndarray]:
    """Sums of the figures over time and of distance for one clip."""
    sound, truth_sound = (sound_curve(x, num_ticks=truth.num_ticks) for x in (audio_LC, truth_LC))
    true_T = true_curve_deg(truth, truth_sound)
    return {
        "trajectory_rmse_deg": squared_error_sums(sound, true_T),
        "azimuth_bias_deg": bias_sums(sound, true_T),
        "movement_direction": direction_sums(sound, true_T),
        "lag_ms": lag_sums(sound, true_T),
        "db_per_doubling": distance_sums(sound, truth, truth_sound),
        "level_distance_spearman": rank_sums(sound, truth, truth_sound),
    }
