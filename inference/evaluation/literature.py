"""The literature's metrics of sound, and what each of them cannot see.

Each `_sums` function returns the sums of one clip, which pool over clips with `metrics.ratio`.
BiasSkill is in bias_skill.py, what needs motion or all boxes in av_align.py.

HelixBench Spatial (HelixWorld, arXiv 2609.38123; STAGEBENCH.md, point 11) asks whether the sound is
on the side on which the object is seen. Mono scores 0, swapped channels the negative. Published, on
their own clips: HelixWorld 41.8, ThinkSound 14.8, EchoWM 12.6, LTX-2.3 1.0, AudioX -5.7,
PrismAudio -9.5.
Legend: W windows, P points at 10 Hz, T ticks, L samples, C audio channels, N onsets, S sums,
R summed rows.
"""

import numpy as np

from spatial_v2a.audio.delay import gcc_delay_ms
from spatial_v2a.audio.onsets import match_onsets
from spatial_v2a.audio.stereo import SILENT_DBFS
from spatial_v2a.timing import TIMING

TOLERANCES_MS = (20, 50, 100)
# Errors are counted in bins of 1 ms up to the widest tolerance, so that a median pools.
NUM_ERROR_BINS = 101

# E-L1 (T-Foley, 2401.09294): frames of 512 samples every 128 at 22.05 kHz, here in 48 kHz samples.
ENVELOPE_SAMPLES = round(512 / 22_050 * TIMING.sample_rate_hz)
ENVELOPE_HOP_SAMPLES = round(128 / 22_050 * TIMING.sample_rate_hz)

# HelixBench: points and windows.
POINT_HZ = 10
BALANCE_SAMPLES = TIMING.sample_rate_hz // 10
BALANCE_HOP_SAMPLES = TIMING.sample_rate_hz // 20
# The side begins so far from the middle: of the picture in half widths, of the sound in power.
SEEN_SIDE, HEARD_SIDE = 0.2, 0.1
# A clip counts with so many lateral points in a row.
MIN_CONSECUTIVE = 4


def onset_f1_sums(found_s_N: np.ndarray, truth_s_N: np.ndarray, *, tolerance_ms: int) -> np.ndarray:
    """Sums [onsets found + onsets true, 2 x pairs] of one clip; their `metrics.ratio` is F1.

    F1 = 2 TP / (found + true), the harmonic mean of precision and recall.
    """
    pairs = match_onsets(found_s_N, truth_s_N, tolerance_s=tolerance_ms / 1000)
    return np.array([len(found_s_N) + len(truth_s_N), 2 * len(pairs)], dtype=np.float64)


def onset_error_sums(found_s_N: np.ndarray, truth_s_N: np.ndarray) -> np.ndarray:
    """Sums [pairs, pairs off by 0 ms, by 1 ms, ... 100 ms] of one clip, for `median_error_ms`.

    FOOTGUN: onsets without a partner within 100 ms do not count, so the median alone flatters a
    sound with few, lucky onsets; read it beside F1.
    """
    pairs = match_onsets(found_s_N, truth_s_N, tolerance_s=TOLERANCES_MS[-1] / 1000)
    errors_ms = [round(abs(found_s_N[i] - truth_s_N[j]) * 1000) for i, j in pairs]
    counts = np.bincount(np.array(errors_ms, dtype=int), minlength=NUM_ERROR_BINS)
    return np.append(len(pairs), counts).astype(np.float64)


def median_error_ms(sums_RS: np.ndarray) -> np.ndarray:
    """Median distance of paired onsets in ms from rows of `onset_error_sums`; NaN without pairs.

    The lower median: the smallest whole millisecond that at least half of the pairs keep to.
    """
    total_R = sums_RS[:, 0]
    reached_RS = np.cumsum(sums_RS[:, 1:], axis=1) >= total_R[:, None] / 2
    return np.where(total_R > 0, reached_RS.argmax(axis=1), np.nan)


def envelope(audio_LC: np.ndarray) -> np.ndarray:
    """RMS over both channels in whole frames of 23 ms every 5.8 ms, [W], full scale 1."""
    power_L = (np.asarray(audio_LC, dtype=np.float64) ** 2).mean(axis=1)
    sums_L = np.append(0.0, np.cumsum(power_L))
    starts_W = np.arange(0, len(power_L) - ENVELOPE_SAMPLES + 1, ENVELOPE_HOP_SAMPLES)
    power_W = (sums_L[starts_W + ENVELOPE_SAMPLES] - sums_L[starts_W]) / ENVELOPE_SAMPLES
    return np.sqrt(np.maximum(power_W, 0.0))


def envelope_l1_sums(audio_LC: np.ndarray, truth_LC: np.ndarray) -> np.ndarray:
    """E-L1 (T-Foley): sums [frames, absolute difference of the RMS envelopes] of one clip.

    Power is averaged over the channels, so it is blind to panning; and because it is not relative,
    silence scores the mean level of the truth, which may be better than a sound at twice its level.
    """
    missing = max(0, len(truth_LC) - len(audio_LC))
    audio_LC = np.pad(audio_LC[: len(truth_LC)], ((0, missing), (0, 0)))
    difference_W = envelope(audio_LC) - envelope(truth_LC)
    return np.array([len(difference_W), np.abs(difference_W).sum()])


def gcc_sums(audio_LC: np.ndarray, truth_LC: np.ndarray) -> np.ndarray:
    """GCC MSE (2410.10676, SoundReactor's evaluation): sums [clips, 1000 x squared error in ms^2].

    The error is that of the clip's MEAN delay, so a walk from left to right equals a still source
    in the middle, and level panning, which delays nothing, equals mono whatever its side.
    """
    audio_ms, truth_ms = gcc_delay_ms(audio_LC), gcc_delay_ms(truth_LC)
    if len(audio_ms) == 0 or len(truth_ms) == 0:
        return np.zeros(2)
    return np.array([1.0, 1000 * (audio_ms.mean() - truth_ms.mean()) ** 2])


def power_balance(audio_LC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(E_R - E_L) / (E_R + E_L) of windows of 100 ms every 50 ms.

    Args:
        audio_LC: [L, 2], full scale 1.

    Returns:
        Middles of the windows in seconds, balances -1 (left) .. 1 (right), 0 in silence, and
        levels in dBFS, [W] each.
    """
    num_windows = max(0, (len(audio_LC) - BALANCE_SAMPLES) // BALANCE_HOP_SAMPLES + 1)
    energy_LC = np.concatenate([np.zeros((1, 2)), np.cumsum(audio_LC.astype(np.float64) ** 2, 0)])
    first_W = BALANCE_HOP_SAMPLES * np.arange(num_windows)
    power_WC = (energy_LC[first_W + BALANCE_SAMPLES] - energy_LC[first_W]) / BALANCE_SAMPLES
    level_W = 10 * np.log10(np.maximum(power_WC.mean(axis=1), 1e-20))
    total_W = power_WC.sum(axis=1)
    balance_W = (power_WC[:, 1] - power_WC[:, 0]) / np.maximum(total_W, 1e-20)
    balance_W[level_W <= SILENT_DBFS] = 0.0
    return (first_W + BALANCE_SAMPLES / 2) / TIMING.sample_rate_hz, balance_W, level_W


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
