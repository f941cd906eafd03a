"""Time difference between the channels of a window of sound, by GCC-PHAT.

Knapp and Carter 1976, table I ("PHAT"). `gcc_delay_ms` is the literature's: whole samples, all bins
alike. `time_difference` is ours for real recordings: only bins that carry sound, between samples,
and with the height of its peak, so that hum and unrelated channels give no answer.
Legend: W windows, L samples, F frequency bins. Sign: POSITIVE when the LEFT channel comes first.
"""

import numpy as np

from spatial_v2a.timing import TIMING

# Windows of 64 ms, delays up to 1 ms: 1024 samples at 16 kHz in StereoCRW (2204.12489).
GCC_WINDOW_SAMPLES = round(0.064 * TIMING.sample_rate_hz)
GCC_MAX_DELAY_SAMPLES = round(0.001 * TIMING.sample_rate_hz)

# Ears are at most 0.7 ms apart; this also holds a pair of microphones 0.7 m apart.
MAX_DELAY_S = 0.002
# A bin this far below the strongest is noise, whose phase says nothing.
MIN_CROSS_POWER_DB = -50.0
# A hum has many equal peaks: below this bandwidth a window is not judged.
MIN_BANDWIDTH_HZ = 1000.0
# Height of a clear peak against 1 for a pure delay; unrelated channels stay below 0.15.
MIN_PEAK = 0.25


def gcc_delay_ms(audio_LC: np.ndarray) -> np.ndarray:
    """Delay of the right channel behind the left in each window by GCC-PHAT, [W] in ms.

    Positive where the left channel leads (a source on the left); at most 1 ms. A window in which a
    channel is silent has no phase and counts 0: hard-panned sound reads as centred.
    """
    num_windows = len(audio_LC) // GCC_WINDOW_SAMPLES
    blocks_WLC = audio_LC[: num_windows * GCC_WINDOW_SAMPLES].astype(np.float64)
    blocks_WLC = blocks_WLC.reshape(num_windows, GCC_WINDOW_SAMPLES, audio_LC.shape[1])
    spectra_WFC = np.fft.rfft(blocks_WLC, n=2 * GCC_WINDOW_SAMPLES, axis=1)
    # G(f) = R(f) L*(f) / |R(f) L*(f)|  (Knapp and Carter 1976, PHAT weighting)
    cross_WF = spectra_WFC[..., 1] * spectra_WFC[..., 0].conj()
    weighted_WF = cross_WF / (np.abs(cross_WF) + 1e-20)
    correlation_WL = np.fft.irfft(weighted_WF, axis=1)
    lags = np.arange(-GCC_MAX_DELAY_SAMPLES, GCC_MAX_DELAY_SAMPLES + 1)
    best_W = lags[np.abs(correlation_WL[:, lags]).argmax(axis=1)]
    silent_W = (blocks_WLC == 0.0).all(axis=1).any(axis=1)
    return np.where(silent_W, 0.0, best_W * 1000 / TIMING.sample_rate_hz)


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
