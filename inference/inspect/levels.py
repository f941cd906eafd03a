"""Health of the samples while they stream by: clipping, offset, peak, level, NaN, digital silence.

Legend: L samples, C channels, T ticks.
"""

from dataclasses import dataclass

import numpy as np

from spatial_v2a.audio.stereo import NOTHING_DBFS

# One sample at full scale is a normalised peak; this many in a row are a cut-off wave.
MIN_CLIP_RUN = 3


@dataclass(frozen=True)
class ChannelLevel:
    """One channel as a whole.

    Attributes:
        name: like left or FC.
        peak_dbfs: largest sample; above 0 in float files that exceed full scale.
        rms_dbfs: root mean square against full scale (a full-scale sine reads -3).
        offset: mean of the samples, full scale 1.
        at_full_scale: share of the samples at full scale.
        num_clip_runs: runs of at least MIN_CLIP_RUN samples at full scale.
        longest_clip_run: longest such run in samples; 0 when there is none.
    """

    name: str
    peak_dbfs: float
    rms_dbfs: float
    offset: float
    at_full_scale: float
    num_clip_runs: int
    longest_clip_run: int


class LevelMeter:
    """Collects the levels of all channels window by window; a few numbers per channel.

    Attributes:
        num_bad: samples that were NaN or infinite; they are measured as 0.
        num_ticks, num_zero_ticks: all ticks, and those whose samples are all exactly 0.
    """

    def __init__(self, names: tuple[str, ...], *, full_scale: float) -> None:
        self._names, self._full_scale = names, full_scale
        count = len(names)
        self._num_samples = 0
        self._sum_C, self._square_C = np.zeros(count), np.zeros(count)
        self._peak_C, self._full_C = np.zeros(count), np.zeros(count, np.int64)
        self._runs = [_Runs() for _ in names]
        self.num_bad = self.num_ticks = self.num_zero_ticks = 0

    def add(self, samples_LC: np.ndarray, tick_starts: np.ndarray) -> np.ndarray:
        """Adds a window and gives its samples back with NaN and infinity replaced by 0."""
        is_bad = ~np.isfinite(samples_LC)
        if is_bad.any():
            self.num_bad += int(is_bad.sum())
            samples_LC = np.where(is_bad, 0.0, samples_LC)
        magnitude_LC = np.abs(samples_LC)
        peak_TC = np.maximum.reduceat(magnitude_LC, tick_starts, axis=0)
        self.num_ticks += len(peak_TC)
        self.num_zero_ticks += int((peak_TC == 0).all(axis=1).sum())
        self._num_samples += len(samples_LC)
        self._sum_C += samples_LC.sum(axis=0)
        self._square_C += (samples_LC**2).sum(axis=0)
        self._peak_C = np.maximum(self._peak_C, peak_TC.max(axis=0))
        is_full_LC = magnitude_LC >= self._full_scale
        self._full_C += is_full_LC.sum(axis=0)
        for runs, is_full_L in zip(self._runs, is_full_LC.T, strict=True):
            runs.add(is_full_L)
        return samples_LC

    def channels(self) -> tuple[ChannelLevel, ...]:
        """What was measured; call once, after the last window."""
        for runs in self._runs:
            runs.add(np.zeros(1, bool))
        count = max(1, self._num_samples)
        return tuple(
            ChannelLevel(
                name=name,
                peak_dbfs=_amplitude_db(self._peak_C[c]),
                rms_dbfs=_amplitude_db(np.sqrt(self._square_C[c] / count)),
                offset=float(self._sum_C[c] / count),
                at_full_scale=float(self._full_C[c] / count),
                num_clip_runs=self._runs[c].count,
                longest_clip_run=self._runs[c].longest,
            )
            for c, name in enumerate(self._names)
        )


class _Runs:
    """Counts long runs of True in a stream of pieces; a run may go on into the next piece."""

    def __init__(self) -> None:
        self.count = self.longest = self._open = 0

    def add(self, is_full_L: np.ndarray) -> None:
        if not is_full_L.any():
            self._close(self._open)
            self._open = 0
            return
        edges = np.flatnonzero(np.diff(is_full_L.astype(np.int8), prepend=0, append=0))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        if starts[0] == 0:
            lengths[0] += self._open
        else:
            self._close(self._open)
        self._open = int(lengths[-1]) if is_full_L[-1] else 0
        for length in lengths[: -1 if is_full_L[-1] else None]:
            self._close(int(length))

    def _close(self, length: int) -> None:
        if length >= MIN_CLIP_RUN:
            self.count += 1
            self.longest = max(self.longest, length)


def _amplitude_db(value: float) -> float:
    return float(20 * np.log10(max(value, 10 ** (NOTHING_DBFS / 20))))
