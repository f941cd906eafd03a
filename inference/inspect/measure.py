"""Runs once through a sound and measures it; then says what kind of stereo it is.

Legend: L samples, C channels as stored, T ticks of 1/30 s, E energies (left^2, right^2, product).
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatial_v2a.audio.stereo import (
    NOTHING_DBFS,
    SILENT_DBFS,
    StereoMeter,
    StereoSummary,
    level_dbfs,
    level_difference_db,
    mid_side_dbfs,
    summarize,
)
from spatial_v2a.inference.inspect.delay import DelayMeter, DelaySummary
from spatial_v2a.inference.inspect.levels import ChannelLevel, LevelMeter
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
