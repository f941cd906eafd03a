"""Frechet distances between sets of sounds, in fixed embeddings: nothing is learned or downloaded.

`timbre_embedding` says what a mono signal sounds like: band levels, their spread over time and
their modulation, the statistics of McDermott and Simoncelli (Neuron 2011) on log-mel bands. On
left, right, mid and side its distance is a Frechet audio distance (1812.08466) per view.
`stereo_embedding` says where sound lies and is blind to what it is; its distance takes the place of
FSAD, the Frechet stereo audio distance (2410.10676), whose embedding is a trained network.
Distances compare within one embedding only: these numbers are not the published ones' scale.
Legend: N embeddings, D width, K rows of a factor, L samples, C audio channels, F frequency bins,
J spectrum frames, M bands, W windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio

from spatial_v2a.audio.panning import MAX_LEVEL_DIFFERENCE_DB
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.timing import TIMING

NORMAL_95 = 1.96

FFT_SAMPLES = 2048
# 10 ms: a window of 1 s has 100 frames, so modulation is seen up to 50 Hz in steps of 1 Hz.
HOP_SAMPLES = 480
WINDOW_FRAMES, WINDOW_HOP_FRAMES = 100, 50
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES
# Power of a band, full-scale sine about 1, under which nothing is heard: -80 dB.
FLOOR_POWER = 1e-8

NUM_MELS = 48
BANDS_PER_GROUP = 6
MODULATION_EDGES_HZ = (1, 2, 4, 8, 16, 32, 50)
# Divisors that bring the three kinds of numbers to about the same spread over recorded clips.
LEVEL_SCALE_DB, SPREAD_SCALE_DB, MODULATION_SCALE_DB = 13.0, 5.5, 2.2
TIMBRE_WIDTH = 2 * NUM_MELS + NUM_MELS // BANDS_PER_GROUP * (len(MODULATION_EDGES_HZ) - 1)

NUM_STEREO_BANDS = 16
# Delays of -1 .. 1 ms in steps of 1/16 ms; only sound under 8 kHz takes part, so no step is missed.
DELAY_STEP_SAMPLES, NUM_DELAY_STEPS = 3, 16
DELAY_LIMIT_HZ = 8000.0
STEREO_WIDTH = 3 * NUM_STEREO_BANDS + 2 * NUM_DELAY_STEPS + 1

VIEWS = ("left", "right", "mid", "side")


def view(audio_LC: np.ndarray, name: str) -> np.ndarray:
    """One mono signal [L] of a stereo sound [L, 2]; mid is (L + R) / 2 and side (L - R) / 2."""
    left_L, right_L = audio_LC[:, 0], audio_LC[:, 1]
    signals = {"left": left_L, "right": right_L}
    signals |= {"mid": (left_L + right_L) / 2, "side": (left_L - right_L) / 2}
    return signals[name]


def embeddings(audio_LC: np.ndarray) -> dict[str, np.ndarray]:
    """Timbre of left, right, mid and side, and the stereo embedding, [W, D] each."""
    timbre = {name: timbre_embedding(view(audio_LC, name)) for name in VIEWS}
    return {**timbre, "stereo": stereo_embedding(audio_LC)}


def timbre_embedding(mono_L: np.ndarray) -> np.ndarray:
    """What it sounds like: 1 s windows every 0.5 s, [W, 144] float64, of a 48 kHz signal [L].

    Per window: mean level of 48 log-mel bands, their standard deviation over time, and the RMS of
    8 band groups' level in octaves of modulation from 1 to 50 Hz. Sounds under 1 s have no window.
    """
    level_JM = _log_mel_db(mono_L)
    windows_WJM = _windows(level_JM)
    grouped = (*windows_WJM.shape[:2], NUM_MELS // BANDS_PER_GROUP, BANDS_PER_GROUP)
    groups_WJG = windows_WJM.reshape(grouped).mean(axis=-1)
    modulation_WG = _modulation_db(groups_WJG)
    return np.concatenate(
        [
            windows_WJM.mean(axis=1) / LEVEL_SCALE_DB,
            windows_WJM.std(axis=1) / SPREAD_SCALE_DB,
            modulation_WG / MODULATION_SCALE_DB,
        ],
        axis=1,
    )


def stereo_embedding(audio_LC: np.ndarray) -> np.ndarray:
    """Where it lies: 1 s windows every 0.5 s, [W, 81] float64, of a 48 kHz sound [L, 2].

    Per window: level difference of 16 mel bands in units of 30 dB, its standard deviation over
    time, the channels' correlation per band, and the phase-transformed cross-correlation at 33
    delays up to 1 ms (weighted as in GCC-PHAT). Gain changes none of them above the floor.
    """
    spectra_CFJ = _spectra(audio_LC)
    bank_FM = _mel_bank(NUM_STEREO_BANDS)
    left_JM, right_JM = (_power(spectra_FJ).T @ bank_FM for spectra_FJ in spectra_CFJ)
    cross_JF = (spectra_CFJ[1] * spectra_CFJ[0].conj()).T
    difference_JM = 10 * np.log10((left_JM + FLOOR_POWER) / (right_JM + FLOOR_POWER))
    limit = MAX_LEVEL_DIFFERENCE_DB
    difference_WJM = _windows(np.clip(difference_JM, -limit, limit)) / limit
    product_WM = _windows(cross_JF.real @ bank_FM).mean(axis=1)
    powers_WM = (_windows(left_JM).mean(axis=1), _windows(right_JM).mean(axis=1))
    correlation_WM = product_WM / np.sqrt(
        (powers_WM[0] + FLOOR_POWER) * (powers_WM[1] + FLOOR_POWER)
    )
    return np.concatenate(
        [
            difference_WJM.mean(axis=1),
            difference_WJM.std(axis=1),
            correlation_WM,
            _delay_correlation(cross_JF),
        ],
        axis=1,
    )


def _spectra(audio_LC: np.ndarray) -> np.ndarray:
    """Complex spectra [C, F, J] by Hann windows; a full-scale sine peaks at 1."""
    audio_CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T, dtype=np.float32))
    window_L = torch.hann_window(FFT_SAMPLES)
    padded_CL = torch.nn.functional.pad(audio_CL, (FFT_SAMPLES // 2, FFT_SAMPLES // 2))
    spectra_CFJ = torch.stft(
        padded_CL, FFT_SAMPLES, HOP_SAMPLES, window=window_L, center=False, return_complex=True
    )
    # The window sums to FFT_SAMPLES / 2, and a sine is half positive, half negative frequency.
    return spectra_CFJ.numpy() * np.float32(4 / FFT_SAMPLES)


def _power(spectra_FJ: np.ndarray) -> np.ndarray:
    return spectra_FJ.real**2 + spectra_FJ.imag**2


def _mel_bank(num_bands: int) -> np.ndarray:
    """Triangular mel filters from 40 Hz to 20 kHz, [F, M]."""
    bank_FM = torchaudio.functional.melscale_fbanks(
        FFT_SAMPLES // 2 + 1, 40.0, 20_000.0, num_bands, TIMING.sample_rate_hz
    )
    return bank_FM.numpy()


def _log_mel_db(mono_L: np.ndarray) -> np.ndarray:
    """Band levels [J, M] in dB, at least -80."""
    power_FJ = _power(_spectra(mono_L[:, None])[0])
    level_JM = 10 * np.log10(power_FJ.T @ _mel_bank(NUM_MELS) + FLOOR_POWER)
    return level_JM.astype(np.float64)


def _windows(values_JM: np.ndarray) -> np.ndarray:
    """Whole windows of 100 frames every 50, [W, 100, M], without the frame after the last hop."""
    num_frames = max(0, len(values_JM) - 1)
    if num_frames < WINDOW_FRAMES:
        return np.zeros((0, WINDOW_FRAMES, values_JM.shape[1]), dtype=values_JM.dtype)
    views_WMJ = np.lib.stride_tricks.sliding_window_view(
        values_JM[:num_frames], WINDOW_FRAMES, axis=0
    )
    return np.swapaxes(views_WMJ[::WINDOW_HOP_FRAMES], 1, 2)


def _modulation_db(level_WJG: np.ndarray) -> np.ndarray:
    """RMS of each column's changes in octaves of modulation frequency, [W, G * octaves] in dB."""
    centred_WJG = level_WJG - level_WJG.mean(axis=1, keepdims=True)
    # Parseval: 2 |X_k|^2 / J^2 is the mean square of a real signal's k-th frequency.
    power_WKG = 2 * np.abs(np.fft.rfft(centred_WJG, axis=1)) ** 2 / WINDOW_FRAMES**2
    octaves = zip(MODULATION_EDGES_HZ[:-1], MODULATION_EDGES_HZ[1:], strict=True)
    rms = [np.sqrt(power_WKG[:, low:high].sum(axis=1)) for low, high in octaves]
    return np.concatenate(rms, axis=1)


def _delay_correlation(cross_JF: np.ndarray) -> np.ndarray:
    """Phase-transformed cross-correlation of each window at 33 delays, [W, 33], at most 1."""
    limit = int(DELAY_LIMIT_HZ / TIMING.sample_rate_hz * FFT_SAMPLES)
    # Weighting by |cross| + floor instead of |cross| keeps silence at 0 (its phase is noise).
    phase_JF = cross_JF[:, :limit] / (np.abs(cross_JF[:, :limit]) + FLOOR_POWER)
    mean_WF = _windows(phase_JF).mean(axis=1)
    steps = np.arange(-NUM_DELAY_STEPS, NUM_DELAY_STEPS + 1) * DELAY_STEP_SAMPLES
    turns_FK = np.outer(np.arange(limit), steps) / FFT_SAMPLES
    return (mean_WF @ np.exp(2j * np.pi * turns_FK)).real / limit


def frechet_distance(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets.

    Small sets score too high: two samples of one distribution are at about 2 tr(C) / N or more.
    Compare systems on the same clips only, and never across numbers of clips.

    Args:
        first_ND, second_ND: one embedding a row; N may differ and may be smaller than D.

    Returns:
        At least 0; NaN when a set has fewer than two embeddings.
    """
    if min(len(first_ND), len(second_ND)) < 2:
        return float("nan")
    return _distance(
        first_ND.mean(axis=0), _factor(first_ND), second_ND.mean(axis=0), _factor(second_ND)
    )


def _factor(rows_ND: np.ndarray) -> np.ndarray:
    """A matrix F [K, D], K <= D, with F^T F the (unbiased) covariance of the rows."""
    centred_ND = (rows_ND - rows_ND.mean(axis=0)) / np.sqrt(len(rows_ND) - 1)
    wide = len(rows_ND) <= rows_ND.shape[1]
    return centred_ND if wide else np.linalg.qr(centred_ND, mode="r")


def _distance(
    first_D: np.ndarray, first_KD: np.ndarray, second_D: np.ndarray, second_KD: np.ndarray
) -> float:
    """Distance from means and covariance factors.

    The eigenvalues of C1 C2 = F1^T F1 F2^T F2 are the squared singular values of F1 F2^T, so the
    trace of its root is their sum: exact for singular covariances, no matrix root, no shrinkage.
    """
    # d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)  (Dowson and Landau 1982, eq. 4)
    shared = np.linalg.svd(first_KD @ second_KD.T, compute_uv=False).sum()
    spread = (first_KD**2).sum() + (second_KD**2).sum() - 2 * shared
    return float(((first_D - second_D) ** 2).sum() + max(spread, 0.0))


@dataclass(frozen=True)
class _Moments:
    """Count, sum and sum of outer products of embeddings: what a set's normal is fitted to."""

    count: int
    sum_D: np.ndarray
    outer_DD: np.ndarray

    @classmethod
    def of(cls, rows_ND: np.ndarray) -> "_Moments":
        return cls(len(rows_ND), rows_ND.sum(axis=0), rows_ND.T @ rows_ND)

    def without(self, part: "_Moments") -> "_Moments":
        return _Moments(
            self.count - part.count, self.sum_D - part.sum_D, self.outer_DD - part.outer_DD
        )

    def mean_and_factor(self) -> tuple[np.ndarray, np.ndarray]:
        mean_D = self.sum_D / self.count
        covariance_DD = (self.outer_DD - self.count * np.outer(mean_D, mean_D)) / (self.count - 1)
        values_D, vectors_DD = np.linalg.eigh(covariance_DD)
        return mean_D, np.sqrt(np.maximum(values_D, 0.0))[:, None] * vectors_DD.T


def frechet_figure(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Figure:
    """Frechet distance over all clips with a 95 % interval: value +- 1.96 jackknife errors.

    The jackknife leaves out one clip of BOTH sets at a time (Efron and Stein 1981). The bootstrap
    of the other figures would not do: clips drawn twice make the sets smaller and the distance,
    which is biased upwards for small sets, larger than the value itself.

    Args:
        first, second: embeddings [N, D] of each clip, clip by clip the same; N may be 0.

    Returns:
        count is the number of embeddings in `first`; NaN when either set has fewer than two, an
        interval of NaN with fewer than three clips.
    """
    rows = [
        np.concatenate([np.asarray(part, dtype=np.float64) for part in s]) for s in (first, second)
    ]
    value = frechet_distance(*rows)
    nothing = float("nan")
    if np.isnan(value):
        return Figure(nothing, nothing, nothing, 0)
    left_out = _leave_one_out(first, second, centre_D=rows[0].mean(axis=0))
    if len(left_out) < 3:
        return Figure(value, nothing, nothing, len(rows[0]))
    # var = (n - 1) / n * sum (d_i - mean d)^2
    error = float(np.sqrt((len(left_out) - 1) * np.var(left_out)))
    low = max(0.0, value - NORMAL_95 * error)
    return Figure(value, low, value + NORMAL_95 * error, len(rows[0]))


def _leave_one_out(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, centre_D: np.ndarray
) -> list[float]:
    """Distances without one clip each; centred beforehand, so that sums of squares stay exact."""
    sets = [[_Moments.of(part - centre_D) for part in s] for s in (first, second)]
    wholes = [_Moments.of(np.concatenate([part - centre_D for part in s])) for s in (first, second)]
    distances = []
    for parts in zip(*sets, strict=True):
        rest = [whole.without(part) for whole, part in zip(wholes, parts, strict=True)]
        if min(moments.count for moments in rest) >= 2:
            distances.append(_distance(*rest[0].mean_and_factor(), *rest[1].mean_and_factor()))
    return distances
