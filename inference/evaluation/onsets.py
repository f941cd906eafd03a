"""Onsets: when sounds begin, and how well two sounds agree on it.

Detection is log-mel spectral flux with the peak picking of Boeck, Krebs and Schedl (ISMIR 2012).
The power of both channels is summed, so panning neither makes nor hides an onset.
Legend: L samples, C audio channels, J spectrum frames, N onsets, S sums, R summed rows.
"""

import numpy as np
import torch

from spatial_v2a.timing import TIMING

FFT_SAMPLES = 1024
HOP_SAMPLES = 120
HOP_S = HOP_SAMPLES / TIMING.sample_rate_hz
NUM_MELS = 40
# Added to the mel power: sound this far below full scale makes no onset.
FLOOR_POWER = 1e-6
# A frame is compared with the one before the previous 10 ms; fully overlapping neighbours would
# spread one onset over a dozen small steps.
LAG_FRAMES = 4
# Peak picking in frames of 2.5 ms: a peak is the maximum within +-30 ms, exceeds the mean from
# 100 ms before to 70 ms after it, and comes 30 ms after the last one (Boeck et al., section 2).
MAXIMUM_FRAMES = 12
MEAN_BEFORE_FRAMES, MEAN_AFTER_FRAMES = 40, 28
GAP_S = 0.030
# Excess over the local mean, in mean dB per band: under a speaking voice's syllables, over hiss.
THRESHOLD_DB = 2.0

TOLERANCES_MS = (20, 50, 100)
# Errors are counted in bins of 1 ms up to the widest tolerance, so that a median pools.
NUM_ERROR_BINS = 101
# Times are sums of binary fractions: a distance equal to the tolerance counts as within it.
TIME_EPS_S = 1e-9


def spectral_flux_db(audio_LC: np.ndarray) -> np.ndarray:
    """Mean rise of the log-mel spectrum over 10 ms, falls left out, [J] in dB per band.

    Args:
        audio_LC: sound at 48 kHz, full scale 1, [L, C]; the channels' powers are summed.

    Returns:
        One value per hop of 2.5 ms; frame j is centred on sample j * HOP_SAMPLES. Frames that reach
        over the end are left out (the mirrored padding rises there); what already sounds in the
        first frame does not rise.
    """
    if len(audio_LC) <= FFT_SAMPLES // 2:
        return np.zeros(0)
    # torchaudio takes half a second to load, and a dub without takes asks for no onsets.
    import torchaudio

    mel = torchaudio.transforms.MelSpectrogram(
        TIMING.sample_rate_hz,
        n_fft=FFT_SAMPLES,
        hop_length=HOP_SAMPLES,
        n_mels=NUM_MELS,
        f_min=40.0,
        power=2.0,
        normalized=True,
    )
    audio_CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T, dtype=np.float32))
    power_JM = mel(audio_CL).sum(dim=0).T.double().numpy()
    level_JM = 10 * np.log10(power_JM + FLOOR_POWER)
    rise_JM = np.maximum(level_JM[LAG_FRAMES:] - level_JM[:-LAG_FRAMES], 0.0)
    num_frames = (len(audio_LC) - FFT_SAMPLES // 2) // HOP_SAMPLES + 1
    return np.pad(rise_JM.mean(axis=1), (LAG_FRAMES, 0))[:num_frames]


def pick_peaks(flux_J: np.ndarray) -> np.ndarray:
    """Frames that are local maxima and stand out from their neighbourhood, ascending, [N]."""
    if len(flux_J) == 0:
        return np.zeros(0, dtype=int)
    padded_J = np.pad(flux_J, MAXIMUM_FRAMES)
    windows_JK = np.lib.stride_tricks.sliding_window_view(padded_J, 2 * MAXIMUM_FRAMES + 1)
    sums_J = np.append(0.0, np.cumsum(flux_J))
    frames_J = np.arange(len(flux_J))
    first_J = np.maximum(frames_J - MEAN_BEFORE_FRAMES, 0)
    end_J = np.minimum(frames_J + MEAN_AFTER_FRAMES + 1, len(flux_J))
    mean_J = (sums_J[end_J] - sums_J[first_J]) / (end_J - first_J)
    stands_out_J = (flux_J == windows_JK.max(axis=1)) & (flux_J >= mean_J + THRESHOLD_DB)
    kept: list[int] = []
    for frame in np.flatnonzero(stands_out_J):
        if not kept or (frame - kept[-1]) * HOP_S > GAP_S:
            kept.append(int(frame))
    return np.array(kept, dtype=int)


def onset_times_s(audio_LC: np.ndarray) -> np.ndarray:
    """Times at which sounds begin, ascending, [N] in seconds.

    The centre of the frame that rises most, which is within 2 ms of a click, of a burst of noise
    and of a decaying tone; a sound that is cut off makes a click, which is an onset too.
    """
    return pick_peaks(spectral_flux_db(audio_LC)) * HOP_S


def match_onsets(
    first_s_N: np.ndarray, second_s_N: np.ndarray, *, tolerance_s: float
) -> list[tuple[int, int]]:
    """One-to-one pairs at most `tolerance_s` apart: as many as can be, then the closest.

    For ascending times an order-preserving pairing is optimal in both respects, so dynamic
    programming over prefixes finds it: best[i][j] = (pairs, -total distance) of i and j times.

    Returns:
        Pairs of indices, ascending.
    """
    num_first, num_second = len(first_s_N), len(second_s_N)
    best = [[(0, 0.0)] * (num_second + 1) for _ in range(num_first + 1)]
    distance_NN = np.abs(np.subtract.outer(first_s_N, second_s_N)).tolist()
    limit = tolerance_s + TIME_EPS_S
    for i in range(1, num_first + 1):
        row, above, distances = best[i], best[i - 1], distance_NN[i - 1]
        for j in range(1, num_second + 1):
            choice = max(above[j], row[j - 1])
            if distances[j - 1] <= limit:
                pairs, minus = above[j - 1]
                choice = max(choice, (pairs + 1, minus - distances[j - 1]))
            row[j] = choice
    return _trace_back(best)


def _trace_back(best: list[list[tuple[int, float]]]) -> list[tuple[int, int]]:
    """The pairs behind the last entry of `match_onsets`' table."""
    i, j = len(best) - 1, len(best[0]) - 1
    pairs = []
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


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
