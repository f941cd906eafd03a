"""Runs once through a sound and measures its health and its stereo; then names the kind of stereo.

Legend: L samples, C channels as stored, T ticks of 1/30 s, E energies (left^2, right^2, product).
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatial_v2a.audio.delay import MIN_PEAK, time_difference
from spatial_v2a.audio.stereo import (
    MIN_CLIP_RUN,
    NOTHING_DBFS,
    SILENT_DBFS,
    StereoMeter,
    StereoSummary,
    level_dbfs,
    level_difference_db,
    mid_side_dbfs,
    summarize,
)
from spatial_v2a.inference.inspect.sound import SoundReader, Track, Window
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import WINDOW_TICKS

# A side this far below the mid is duplicated mono, whatever a codec left of it.
DUAL_MONO_DB = -60.0
# No real stereo is this narrow, but AAC makes such a side out of duplicated mono.
NARROW_DB = -30.0
PERCENTILES = (5, 25, 50, 75, 95)

NO_PAIR, MONO, SILENT = "no left/right pair", "mono", "silent"
EXACT, NEAR = "dual mono (bit for bit)", "dual mono (within -60 dB)"
NARROW = "nearly mono (side under -30 dB)"
FIXED, ONE_SIDED, STEREO = "mono at a fixed pan", "one channel only", "true stereo"


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


@dataclass(frozen=True)
class StereoFigures:
    """How far left and right differ; level differences are positive to the left.

    Attributes:
        summary: mid, side, and shares of left / centre / right, as `dub` reports them.
        correlation: of left and right over the whole sound, -1..1; NaN when one is silent.
        tick_correlation: median over the audible ticks.
        balance_db: level of the left channel minus the right's over the whole sound.
        difference_db: level difference of the audible ticks at PERCENTILES; NaN when all is silent.
        difference_std_db: its standard deviation.
        delay: time difference between the channels.
    """

    summary: StereoSummary
    correlation: float
    tick_correlation: float
    balance_db: float
    difference_db: tuple[float, ...]
    difference_std_db: float
    delay: DelaySummary


@dataclass(frozen=True)
class Measured:
    """Everything that one pass over a sound gives.

    Attributes:
        kind: one of the constants above.
        duration_s: what could be read.
        channels: level of each channel.
        silent, digital_silence: share of the ticks under SILENT_DBFS, and of all-zero ticks.
        num_bad: samples that are NaN or infinite.
        num_damaged, num_gaps, gap_s: see SoundReader.
        stereo: None for one channel, or without a left/right pair.
        energies_TE, times_T: per tick, and when each begins on the file's own clock; for pictures.
    """

    kind: str
    duration_s: float
    channels: tuple[ChannelLevel, ...]
    silent: float
    digital_silence: float
    num_bad: int
    num_damaged: int
    num_gaps: int
    gap_s: float
    stereo: StereoFigures | None
    energies_TE: np.ndarray
    times_T: np.ndarray


def measure(
    path: Path, track: Track, *, on_window: Callable[[int], None] | None = None
) -> Measured:
    """Measures a track in one pass, at its own sample rate.

    Args:
        path: the file.
        track: from `describe_track`.
        on_window: called with the number of windows done.
    """
    reader = SoundReader(path, track)
    meter = _Meter(track)
    for index, window in enumerate(reader.windows()):
        meter.add(window)
        if on_window is not None:
            on_window(index + 1)
    stereo = meter.stereo() if track.pair else None
    energies_TE = meter.energies.energies_TE
    levels = meter.levels
    return Measured(
        kind=_kind(track, stereo, meter),
        duration_s=reader.num_samples / track.sample_rate_hz,
        channels=levels.channels(),
        silent=summarize(energies_TE).silent,
        digital_silence=levels.num_zero_ticks / max(1, levels.num_ticks),
        num_bad=levels.num_bad,
        num_damaged=reader.num_damaged,
        num_gaps=reader.num_gaps,
        gap_s=reader.gap_s,
        stereo=stereo,
        energies_TE=energies_TE,
        times_T=np.array(meter.times_s),
    )


class _Meter:
    """All meters of one pass; 32 bytes a tick."""

    def __init__(self, track: Track) -> None:
        self.track = track
        self.levels = LevelMeter(track.channel_names, full_scale=track.full_scale)
        self.energies = StereoMeter()
        self.delays = DelayMeter(sample_rate_hz=track.sample_rate_hz)
        self.times_s = array("d")
        self.is_identical = True
        self._full_length = WINDOW_TICKS * track.sample_rate_hz // TIMING.tick_hz

    def add(self, window: Window) -> None:
        """Measures one window."""
        samples_LC = self.levels.add(window.samples_LC, window.tick_starts)
        # Without a pair the first channel stands for both: its level is all that is asked for.
        pair_LC = samples_LC[:, list(self.track.pair or (0, 0))]
        self.is_identical &= np.array_equal(pair_LC[:, 0], pair_LC[:, 1])
        for tick_LC in np.split(pair_LC, window.tick_starts[1:]):
            self.energies.add(tick_LC)
        self.times_s.extend(window.time_s + window.tick_starts / self.track.sample_rate_hz)
        is_audible = 10 * np.log10((pair_LC**2).mean() + 1e-30) > SILENT_DBFS
        if self.track.pair and is_audible and len(pair_LC) >= self._full_length:
            self.delays.add(pair_LC)

    def stereo(self) -> StereoFigures:
        """Stereo figures of all that was added."""
        energies_TE = self.energies.energies_TE
        audible_T = level_dbfs(energies_TE) > SILENT_DBFS
        difference_T = level_difference_db(energies_TE)[audible_T]
        nothing = (float("nan"),) * len(PERCENTILES)
        found = np.percentile(difference_T, PERCENTILES) if len(difference_T) else nothing
        of_ticks = _correlation(energies_TE[audible_T])
        of_ticks = of_ticks[~np.isnan(of_ticks)]
        total_E = energies_TE.mean(axis=0)
        return StereoFigures(
            summary=summarize(energies_TE),
            correlation=float(_correlation(total_E[None])[0]),
            tick_correlation=float(np.median(of_ticks)) if len(of_ticks) else float("nan"),
            balance_db=float(level_difference_db(total_E[None], floor_dbfs=NOTHING_DBFS)[0]),
            difference_db=tuple(float(value) for value in found),
            difference_std_db=float(difference_T.std()) if len(difference_T) else float("nan"),
            delay=self.delays.summary(),
        )


def _correlation(energies_TE: np.ndarray) -> np.ndarray:
    """Correlation of left and right (about zero, not about their means) [T]; NaN if one is 0."""
    product_T = np.sqrt(energies_TE[:, 0] * energies_TE[:, 1])
    nothing = np.full(len(energies_TE), np.nan)
    ratio_T = np.divide(energies_TE[:, 2], product_T, out=nothing, where=product_T > 1e-20)
    return np.clip(ratio_T, -1.0, 1.0)


def _kind(track: Track, stereo: StereoFigures | None, meter: _Meter) -> str:
    """Names the kind of stereo; the first that fits, from nothing to everything."""
    if stereo is None:
        return MONO if track.num_channels == 1 else NO_PAIR
    left, right, cross = meter.energies.energies_TE.mean(axis=0)
    limit = 10 ** (DUAL_MONO_DB / 10)
    if left == right == 0:
        return SILENT
    if meter.is_identical:
        return EXACT
    mid_db, side_db = mid_side_dbfs(meter.energies.energies_TE)
    if side_db <= max(mid_db + DUAL_MONO_DB, NOTHING_DBFS):
        return NEAR
    if min(left, right) <= limit * max(left, right):
        return ONE_SIDED
    # What is left of one channel when the best copy of the other is taken away.
    if 1.0 - cross**2 / (left * right) <= limit:
        return FIXED
    return NARROW if side_db <= mid_db + NARROW_DB else STEREO
