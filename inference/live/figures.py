"""What is counted and timed while a session runs: status line, summary and JSON."""

from array import array
from collections import deque
from dataclasses import asdict, dataclass, field

import numpy as np

from spatial_v2a.timing import TIMING

RECENT_TICKS = 10 * TIMING.tick_hz


@dataclass
class Counts:
    """What happened so far; numbers of events.

    Attributes:
        ticks: ticks of sound that were due, concealed and dropped ones included.
        pictures: decoded; `pictures_unused` went by between two ticks.
        ticks_held: ticks that saw the picture of the tick before.
        packets_damaged: packets that could not be decoded.
        resolution_changes: times the picture's size changed.
        ticks_skipped: ticks the model left out because it would have been too late.
        ticks_late: ticks it made, too late to be heard.
        ticks_concealed: ticks heard without a sound of their own, for either reason.
        ticks_dropped: ticks left out because the sink did not take them in time.
        underruns: gaps in the sound, however many ticks long.
        source_losses, source_returns: times the source broke off and came back.
    """

    ticks: int = 0
    pictures: int = 0
    pictures_unused: int = 0
    ticks_held: int = 0
    packets_damaged: int = 0
    resolution_changes: int = 0
    ticks_skipped: int = 0
    ticks_late: int = 0
    ticks_concealed: int = 0
    ticks_dropped: int = 0
    underruns: int = 0
    source_losses: int = 0
    source_returns: int = 0


@dataclass
class Figures:
    """Counts and times of one session.

    Attributes:
        counts: see there.
        tick_ms: perception and engine of each tick the model made, milliseconds.
        av_delay_ms: from each new picture to its sound.
        drift_ms: sound that was heard minus time that went by, now; negative is late.
        wall_s: from the first tick's being due to the end.
        ended: why it ended.
        is_cut_short: the sink took no more, or what came was no sound, before the end.
    """

    counts: Counts = field(default_factory=Counts)
    tick_ms: array = field(default_factory=lambda: array("f"))
    av_delay_ms: array = field(default_factory=lambda: array("f"))
    drift_ms: float = 0.0
    wall_s: float = 0.0
    ended: str = ""
    is_cut_short: bool = False
    _recent_ms: deque = field(default_factory=lambda: deque(maxlen=RECENT_TICKS))
    _recent_delay_ms: deque = field(default_factory=lambda: deque(maxlen=RECENT_TICKS))

    @property
    def sound_s(self) -> float:
        """Length of the sound, seconds."""
        return float(self.counts.ticks * TIMING.tick_s)

    @property
    def is_heard(self) -> bool:
        """Whether any tick had a sound of its own."""
        return self.counts.ticks > self.counts.ticks_concealed

    def add_tick(self, seconds: float) -> None:
        """One tick of the model took this long."""
        self.tick_ms.append(1e3 * seconds)
        self._recent_ms.append(1e3 * seconds)

    def add_delay(self, seconds: float) -> None:
        """A new picture was heard this long after it was there."""
        self.av_delay_ms.append(1e3 * seconds)
        self._recent_delay_ms.append(1e3 * seconds)

    def status(self) -> str:
        """One line on the last ten seconds and all that went wrong."""
        counts = self.counts
        p50, p95 = percentiles(self._recent_ms)
        delay, _ = percentiles(self._recent_delay_ms)
        return (
            f"{self.sound_s:.1f} s | tick p50 {p50:.0f} p95 {p95:.0f} ms | A/V delay {delay:.0f} ms"
            f" | drift {self.drift_ms:+.1f} ms | dropped {counts.pictures_unused} pictures,"
            f" {counts.ticks_skipped + counts.ticks_late + counts.ticks_dropped} ticks"
            f" | underruns {counts.underruns}"
        )

    def summary(self) -> str:
        """One line on the whole session."""
        counts = self.counts
        p50, p95 = percentiles(self.tick_ms)
        delay, delay_95 = percentiles(self.av_delay_ms)
        # A run without a clock has neither.
        on_time = f" A/V delay p50 {delay:.0f} ms, p95 {delay_95:.0f} ms;"
        on_time += f" drift {self.drift_ms:+.1f} ms;"
        return (
            f"{self.sound_s:.2f} s of sound in {self.wall_s:.1f} s ({self.ended});"
            f" per tick p50 {p50:.1f} ms, p95 {p95:.1f} ms;{on_time if self.av_delay_ms else ''}"
            f" {counts.pictures} pictures, {counts.pictures_unused} dropped, {counts.ticks_held}"
            f" ticks held one, {counts.packets_damaged} damaged packets;"
            f" {counts.ticks_skipped} ticks skipped, {counts.ticks_late} late,"
            f" {counts.ticks_dropped} dropped by the sink,"
            f" {counts.underruns} underruns"
        )

    def as_json(self) -> dict:
        """Everything, for machines; milliseconds are p50 and p95 of the whole session, if any."""
        times = {"tick_ms": self.tick_ms, "av_delay_ms": self.av_delay_ms}
        return {
            "ended": self.ended,
            "sound_s": round(self.sound_s, 4),
            "wall_s": round(self.wall_s, 3),
            "samples": (self.counts.ticks - self.counts.ticks_dropped) * TIMING.samples_per_tick,
            **asdict(self.counts),
            **{
                name: dict(zip(("p50", "p95"), np.round(percentiles(values), 2), strict=True))
                for name, values in times.items()
                if values
            },
            "drift_ms": round(self.drift_ms, 2),
        }


def percentiles(values_ms: array | deque) -> tuple[float, float]:
    """p50 and p95; zeros of nothing."""
    if not values_ms:
        return 0.0, 0.0
    p50, p95 = np.percentile(np.asarray(values_ms), [50, 95])
    return float(p50), float(p95)
