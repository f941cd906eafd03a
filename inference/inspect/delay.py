"""Time difference between the channels, window by window.

GCC-PHAT: Knapp and Carter 1976, table I ("PHAT"), on the bins that carry sound.
Legend: L samples, F frequency bins. Sign: POSITIVE when the LEFT channel comes first.
"""

from array import array
from dataclasses import dataclass

import numpy as np

# Ears are at most 0.7 ms apart; this also holds a pair of microphones 0.7 m apart.
MAX_DELAY_S = 0.002
# A bin this far below the strongest is noise, whose phase says nothing.
MIN_CROSS_POWER_DB = -50.0
# A hum has many equal peaks: below this bandwidth a window is not judged.
MIN_BANDWIDTH_HZ = 1000.0
# Height of the peak against 1 for a pure delay; unrelated channels stay below 0.15.
MIN_PEAK = 0.25


@dataclass(frozen=True)
class DelaySummary:
    """Time differences of the windows with a clear peak.

    Attributes:
        num_clear: windows with a clear peak.
        num_windows: audible windows of full length.
        median_ms, low_ms, high_ms: median, 5th and 95th percentile; NaN without a clear window.
        median_peak: median height of the clear peaks, 0..1.
    """

    num_clear: int
    num_windows: int
    median_ms: float
    low_ms: float
    high_ms: float
    median_peak: float


class DelayMeter:
    """Collects one time difference per window; 16 bytes each."""

    def __init__(self, *, sample_rate_hz: int) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._num_windows = 0
        self._found = array("d")

    def add(self, stereo_LC: np.ndarray) -> None:
        """Adds an audible window [L, 2]."""
        self._num_windows += 1
        found = time_difference(stereo_LC, sample_rate_hz=self._sample_rate_hz)
        if found is not None and found[1] >= MIN_PEAK:
            self._found.extend(found)

    def summary(self) -> DelaySummary:
        """What was measured so far."""
        delay_s, peak = np.array(self._found).reshape(-1, 2).T
        nothing = (np.nan, np.nan, np.nan)
        low, median, high = np.percentile(delay_s, [5, 50, 95]) if len(delay_s) else nothing
        return DelaySummary(
            num_clear=len(delay_s),
            num_windows=self._num_windows,
            median_ms=float(1e3 * median),
            low_ms=float(1e3 * low),
            high_ms=float(1e3 * high),
            median_peak=float(np.median(peak)) if len(peak) else float("nan"),
        )


def time_difference(stereo_LC: np.ndarray, *, sample_rate_hz: int) -> tuple[float, float] | None:
    """Delay of the right channel behind the left one, and how clear it is.

    Args:
        stereo_LC: one window [L, 2], much longer than MAX_DELAY_S.
        sample_rate_hz: samples per second.

    Returns:
        (seconds, height of the peak 0..1), or None when a channel is silent, the sound is too
        narrow to say, or there is no peak within MAX_DELAY_S.
    """
    length = len(stereo_LC)
    spectrum_FC = np.fft.rfft(stereo_LC * np.hanning(length)[:, None], axis=0)
    cross_F = spectrum_FC[:, 0].conj() * spectrum_FC[:, 1]
    magnitude_F = np.abs(cross_F)
    magnitude_F[0] = 0.0  # an offset is no sound
    is_used_F = magnitude_F > magnitude_F.max() * 10 ** (MIN_CROSS_POWER_DB / 10)
    num_used = int(is_used_F.sum())
    if num_used * sample_rate_hz / length < MIN_BANDWIDTH_HZ:
        return None
    phase_F = np.divide(cross_F, magnitude_F, out=np.zeros_like(cross_F), where=is_used_F)
    height_L = np.fft.irfft(phase_F, n=length) * (length / (2 * num_used))
    reach = min(int(MAX_DELAY_S * sample_rate_hz) + 1, length // 2 - 2)
    near = np.concatenate([height_L[-reach - 1 :], height_L[: reach + 2]])
    best = 1 + int(np.argmax(near[1:-1]))
    before, peak, after = near[best - 1 : best + 2]
    if peak < max(before, after):
        return None  # it only rises to the edge of the range
    curvature = before - 2 * peak + after
    # The vertex of the parabola through the three samples.
    shift = 0.5 * (before - after) / curvature if curvature < 0 else 0.0
    lag = best - (reach + 1) + shift
    return float(lag / sample_rate_hz), float(min(peak, 1.0))
