"""Onsets: when sounds begin, and which onsets of two sounds belong together.

Detection is log-mel spectral flux with the peak picking of Boeck, Krebs and Schedl (ISMIR 2012).
The power of both channels is summed, so panning neither makes nor hides an onset.
Legend: L samples, C audio channels, J spectrum frames, N onsets, T ticks.
"""

from array import array
from functools import cache

import numpy as np
import torch
from torch import nn

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

# A block is measured with this much sound before and after it, so that its frames and its peaks
# are those of the whole sound. Both are whole numbers of spectrum frames.
CONTEXT_TICKS = 6
BLOCK_TICKS = 60
# Blocks of a sound that is in memory: the spectrogram takes 20 times as much as its sound.
WHOLE_BLOCK_TICKS = 600

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
    audio_CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T, dtype=np.float32))
    power_JM = _mel_spectrogram()(audio_CL).sum(dim=0).T.double().numpy()
    level_JM = 10 * np.log10(power_JM + FLOOR_POWER)
    rise_JM = np.maximum(level_JM[LAG_FRAMES:] - level_JM[:-LAG_FRAMES], 0.0)
    num_frames = (len(audio_LC) - FFT_SAMPLES // 2) // HOP_SAMPLES + 1
    return np.pad(rise_JM.mean(axis=1), (LAG_FRAMES, 0))[:num_frames]


@cache
def _mel_spectrogram() -> nn.Module:
    # torchaudio takes half a second to load, and a dub without takes asks for no onsets.
    import torchaudio

    return torchaudio.transforms.MelSpectrogram(
        TIMING.sample_rate_hz,
        n_fft=FFT_SAMPLES,
        hop_length=HOP_SAMPLES,
        n_mels=NUM_MELS,
        f_min=40.0,
        power=2.0,
        normalized=True,
    )


def pick_peaks(flux_J: np.ndarray) -> np.ndarray:
    """Frames that are local maxima and stand out from their neighbourhood, ascending, [N]."""
    from scipy.ndimage import maximum_filter1d

    if len(flux_J) == 0:
        return np.zeros(0, dtype=int)
    maximum_J = maximum_filter1d(flux_J, 2 * MAXIMUM_FRAMES + 1, mode="constant")
    sums_J = np.append(0.0, np.cumsum(flux_J))
    frames_J = np.arange(len(flux_J))
    first_J = np.maximum(frames_J - MEAN_BEFORE_FRAMES, 0)
    end_J = np.minimum(frames_J + MEAN_AFTER_FRAMES + 1, len(flux_J))
    mean_J = (sums_J[end_J] - sums_J[first_J]) / (end_J - first_J)
    stands_out_J = (flux_J == maximum_J) & (flux_J >= mean_J + THRESHOLD_DB)
    kept: list[int] = []
    for frame in np.flatnonzero(stands_out_J):
        if not kept or (frame - kept[-1]) * HOP_S > GAP_S:
            kept.append(int(frame))
    return np.array(kept, dtype=int)


class OnsetMeter:
    """Onsets of a sound of any length while it streams by: the offline detector, block by block.

    Keeps 8 bytes per onset, 4 per tick, and one block of sound with its context.
    """

    def __init__(self, *, block_ticks: int = BLOCK_TICKS) -> None:
        self._block_samples = block_ticks * TIMING.samples_per_tick
        assert self._block_samples % HOP_SAMPLES == 0, f"{block_ticks} ticks are no whole frames"
        self._context_samples = CONTEXT_TICKS * TIMING.samples_per_tick
        self._frames, self._strengths = array("q"), array("f")
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._start = 0  # first sample of what is pending
        self._first = 0  # first sample that is not measured yet

    def add(self, audio_LC: np.ndarray) -> None:
        """Adds a piece of sound [L, 2], a block long at most."""
        self._pending.append(np.asarray(audio_LC, dtype=np.float32))
        self._num_pending += len(audio_LC)
        end = self._first + self._block_samples
        if self._start + self._num_pending >= end + self._context_samples:
            frames_N, strengths_T = self._measure(end)
            self._frames.extend(frames_N)
            self._strengths.extend(strengths_T)
            self._first = end
            kept = max(0, end - self._context_samples)
            # A copy, so that the block itself can go.
            rest_LC = np.concatenate(self._pending)[kept - self._start :].copy()
            self._pending, self._num_pending, self._start = [rest_LC], len(rest_LC), kept

    @property
    def times_s(self) -> np.ndarray:
        """Times at which sounds begin, ascending, [N] seconds."""
        return np.append(np.array(self._frames, dtype=int), self._rest()[0]) * HOP_S

    @property
    def strength_db_T(self) -> np.ndarray:
        """Largest rise of the spectrum in each tick [T], mean dB per band."""
        return np.append(np.array(self._strengths), self._rest()[1])

    def _rest(self) -> tuple[np.ndarray, np.ndarray]:
        return self._measure(self._start + self._num_pending)

    def _measure(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of onsets and tick strengths of the samples from `_first` to `end`."""
        strength_T = np.zeros(-(-(end - self._first) // TIMING.samples_per_tick))
        if len(strength_T) == 0:
            return np.zeros(0, dtype=int), strength_T
        flux_J = spectral_flux_db(np.concatenate(self._pending))
        sample_J = self._start + np.arange(len(flux_J)) * HOP_SAMPLES
        is_new_J = (sample_J >= self._first) & (sample_J < end)
        tick_J = (sample_J[is_new_J] - self._first) // TIMING.samples_per_tick
        np.maximum.at(strength_T, tick_J, flux_J[is_new_J])
        peaks_N = pick_peaks(flux_J)
        return self._start // HOP_SAMPLES + peaks_N[is_new_J[peaks_N]], strength_T


def onset_times_s(audio_LC: np.ndarray) -> np.ndarray:
    """Times at which sounds begin, ascending, [N] in seconds.

    The centre of the frame that rises most, which is within 2 ms of a click, of a burst of noise
    and of a decaying tone; a sound that is cut off makes a click, which is an onset too.
    """
    meter = OnsetMeter(block_ticks=WHOLE_BLOCK_TICKS)
    for start in range(0, len(audio_LC), WHOLE_BLOCK_TICKS * TIMING.samples_per_tick):
        meter.add(audio_LC[start : start + WHOLE_BLOCK_TICKS * TIMING.samples_per_tick])
    return meter.times_s


def match_onsets(
    first_s_N: np.ndarray, second_s_N: np.ndarray, *, tolerance_s: float
) -> list[tuple[int, int]]:
    """One-to-one pairs at most `tolerance_s` apart: as many as can be, then the closest.

    mir_eval's match_events makes as many pairs, but not the closest, which an error in ms needs.

    Args:
        first_s_N, second_s_N: ascending times.

    Returns:
        Pairs of indices, ascending.
    """
    from scipy.optimize import linear_sum_assignment

    limit = tolerance_s + TIME_EPS_S
    times_s = np.sort(np.concatenate([first_s_N, second_s_N]))
    # No pair reaches across a longer pause, so what lies between two of them is matched alone.
    cuts_s = ((times_s[1:] + times_s[:-1]) / 2)[np.diff(times_s) > limit]
    pieces = (
        np.split(np.arange(len(times)), np.searchsorted(times, cuts_s))
        for times in (first_s_N, second_s_N)
    )
    pairs: list[tuple[int, int]] = []
    for first_P, second_P in zip(*pieces, strict=True):
        distance_PP = np.abs(np.subtract.outer(first_s_N[first_P], second_s_N[second_P]))
        # A pair is worth more than all distances together.
        worth = (min(distance_PP.shape) + 1) * limit
        cost_PP = np.where(distance_PP <= limit, distance_PP - worth, 0.0)
        rows, columns = linear_sum_assignment(cost_PP)
        is_pair = cost_PP[rows, columns] < 0
        # Crossed pairs are as close uncrossed.
        pairs += zip(first_P[rows[is_pair]], second_P[np.sort(columns[is_pair])], strict=True)
    return pairs
