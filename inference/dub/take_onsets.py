"""Onsets of a sound of any length while it streams by: the offline detector, block by block.

Legend: L samples, C audio channels, J spectrum frames, T ticks, N onsets.
"""

from array import array

import numpy as np

from spatial_v2a.inference.evaluation.onsets import HOP_S, HOP_SAMPLES, pick_peaks, spectral_flux_db
from spatial_v2a.timing import TIMING

# A block is measured with this much sound before and after it, so that its frames and its peaks
# are those of the whole sound. Both are whole numbers of spectrum frames.
CONTEXT_TICKS = 6
BLOCK_TICKS = 60
CONTEXT_SAMPLES = CONTEXT_TICKS * TIMING.samples_per_tick
BLOCK_SAMPLES = BLOCK_TICKS * TIMING.samples_per_tick


class OnsetMeter:
    """Keeps 8 bytes per onset, 4 per tick, and at most 2.4 seconds of sound."""

    def __init__(self) -> None:
        self._times_s, self._strengths = array("d"), array("f")
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._start = 0  # first sample of what is pending
        self._first = 0  # first sample that is not measured yet

    def add(self, audio_LC: np.ndarray) -> None:
        """Adds a piece of sound [L, 2]."""
        self._pending.append(np.asarray(audio_LC, dtype=np.float32))
        self._num_pending += len(audio_LC)
        end = self._first + BLOCK_SAMPLES
        if self._start + self._num_pending >= end + CONTEXT_SAMPLES:
            times, strengths = self._measure(end)
            self._times_s.extend(times)
            self._strengths.extend(strengths)
            self._first = end
            kept = max(0, end - CONTEXT_SAMPLES)
            # A copy, so that the block itself can go.
            rest_LC = np.concatenate(self._pending)[kept - self._start :].copy()
            self._pending, self._num_pending, self._start = [rest_LC], len(rest_LC), kept

    @property
    def times_s(self) -> np.ndarray:
        """Times at which sounds begin, ascending, [N] seconds."""
        return np.append(np.array(self._times_s), self._rest()[0])

    @property
    def strength_db_T(self) -> np.ndarray:
        """Largest rise of the spectrum in each tick [T], mean dB per band."""
        return np.append(np.array(self._strengths), self._rest()[1])

    def _rest(self) -> tuple[np.ndarray, np.ndarray]:
        return self._measure(self._start + self._num_pending)

    def _measure(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Onset times and tick strengths of the samples from `_first` to `end`."""
        num_ticks = -(-(end - self._first) // TIMING.samples_per_tick)
        strength_T = np.zeros(num_ticks)
        if num_ticks == 0:
            return np.zeros(0), strength_T
        flux_J = spectral_flux_db(np.concatenate(self._pending))
        sample_J = self._start + np.arange(len(flux_J)) * HOP_SAMPLES
        is_new_J = (sample_J >= self._first) & (sample_J < end)
        tick_J = (sample_J[is_new_J] - self._first) // TIMING.samples_per_tick
        np.maximum.at(strength_T, tick_J, flux_J[is_new_J])
        peaks_N = pick_peaks(flux_J)
        peaks_N = peaks_N[is_new_J[peaks_N]]
        return self._start / TIMING.sample_rate_hz + peaks_N * HOP_S, strength_T
