"""What a minute of a long run was like: its sound, its ticks, the memory at its end.

Legend: C channels, L samples, F frequency bands, T ticks.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.inference.evaluation.metrics import level_dbfs
from spatial_v2a.timing import TIMING

# Third-octave centres from 50 Hz to 16 kHz.
BAND_CENTRES_HZ = tuple(1000.0 * 2.0 ** (k / 3) for k in range(-13, 13))
# A band this far below the loudest one is not heard; its change is not counted.
BAND_RANGE_DB = 40.0


@dataclass(frozen=True)
class Minute:
    """Figures of one minute.

    Attributes:
        level_dbfs: RMS level of both channels.
        side_over_mid_db: level of the side relative to the mid.
        band_dbfs_F: power in third octaves, see `BAND_CENTRES_HZ`.
        p50_ms, p99_ms: what had to fit into a tick: the slower of perception (decoding included)
            and engine where they run beside each other, else their sum.
        num_misses: ticks that took longer than a tick lasts.
        memory_mb: resident memory at the end of the minute.
        fresh_ms: median time that perception of single pictures of the same minute took in a
            stream begun for each: the same arithmetic without a past, so what changes in it is
            the machine.
    """

    level_dbfs: float
    side_over_mid_db: float
    band_dbfs_F: tuple[float, ...]
    p50_ms: float
    p99_ms: float
    num_misses: int
    memory_mb: float
    fresh_ms: float


def minute_of(audio_LC: NDArray, tick_ms_T: NDArray, fresh_ms_T: NDArray) -> Minute:
    """Figures of a minute that has just ended.

    Args:
        audio_LC: its sound.
        tick_ms_T: time of each tick.
        fresh_ms_T: time of perception in a stream begun anew, NaN where that was not tried.
    """
    left, right = audio_LC[:, :1], audio_LC[:, 1:]
    p50_ms, p99_ms = np.percentile(tick_ms_T, [50, 99])
    return Minute(
        level_dbfs=float(level_dbfs(audio_LC)),
        side_over_mid_db=float(level_dbfs((left - right) / 2) - level_dbfs((left + right) / 2)),
        band_dbfs_F=tuple(float(value) for value in third_octave_db(audio_LC)),
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        num_misses=int((tick_ms_T > 1e3 * float(TIMING.tick_s)).sum()),
        memory_mb=resident_mb(),
        fresh_ms=float(np.nanmedian(fresh_ms_T)),
    )


def band_changes_db(before: Minute, after: Minute) -> NDArray:
    """Change of each band [F] in dB, 0 where neither minute has anything to hear."""
    before_F, after_F = np.array(before.band_dbfs_F), np.array(after.band_dbfs_F)
    loudest = max(before_F.max(), after_F.max())
    is_heard_F = np.maximum(before_F, after_F) > loudest - BAND_RANGE_DB
    return np.where(is_heard_F, after_F - before_F, 0.0)


def third_octave_db(audio_LC: NDArray) -> NDArray:
    """Power in third-octave bands (both channels), dB below full scale [F]; Welch's method."""
    size = 8192
    count = max(1, (len(audio_LC) - size) // (size // 2) + 1)
    window = np.hanning(size)
    power = np.zeros(size // 2 + 1)
    for block in range(count):
        piece = audio_LC[block * size // 2 : block * size // 2 + size]
        piece = np.pad(piece, ((0, size - len(piece)), (0, 0))) * window[:, None]
        power += (np.abs(np.fft.rfft(piece, axis=0)) ** 2).mean(axis=1)
    power *= 2.0 / (count * (window**2).sum() * size)
    frequency_hz = np.fft.rfftfreq(size, 1 / TIMING.sample_rate_hz)
    bands = [
        power[(frequency_hz >= c * 2 ** (-1 / 6)) & (frequency_hz < c * 2 ** (1 / 6))].sum()
        for c in BAND_CENTRES_HZ
    ]
    return 10 * np.log10(np.maximum(bands, 1e-12))


def resident_mb() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
