"""The figures of a run: percentiles, deadline, ceiling; as a report and as JSON.

Legend: T ticks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.inference.bench.machine import Memory, Rates
from spatial_v2a.inference.bench.parts import Work
from spatial_v2a.inference.bench.ticks import OTHER, TickLog
from spatial_v2a.timing import TIMING

DEADLINE_MS = 1e3 * float(TIMING.tick_s)
# SoundReactor, 2510.02110: per frame, batch 1, 480p at 30 fps, to the waveform, on one H100.
PUBLISHED = (
    {"system": "SoundReactor", "nfe": 1, "ms": 26.3},
    {"system": "SoundReactor", "nfe": 2, "ms": 28.2},
    {"system": "SoundReactor", "nfe": 4, "ms": 31.5},
)
PUBLISHED_NOTE = "as published in 2510.02110, on one H100; not measured here"


@dataclass(frozen=True)
class Spread:
    """Percentiles over ticks, linear between neighbours, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    max_ms: float


@dataclass(frozen=True)
class PartFigures:
    """One part of the tick.

    Attributes:
        spread: its times in the ticks in which it ran.
        share: of the ticks in which it ran.
        gflop, megabytes: what it cannot avoid; None where nothing is counted (decode, other).
        ceiling_ms: time for that at the machine's measured rates.
        ratio: p50 over the ceiling.
    """

    spread: Spread
    share: float = 1.0
    gflop: float | None = None
    megabytes: float | None = None
    ceiling_ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything a run of one number of streams found.

    Attributes:
        num_streams, num_ticks, num_warmup_ticks: extent of the run.
        is_ahead: whether perception ran ahead on a thread of its own.
        tick: what must fit into a tick, see `TickLog`.
        ready: from packets to samples.
        num_misses: ticks above the deadline.
        parts: by name, in the order of a tick, `other` last.
        sum_over_tick: share of the mean work of a tick that the parts without `other` make up.
        ceiling_ms: sum of the parts' ceilings.
        num_boxes: boxes per stream and tick.
        stolen_share: processor time that the host gave to other guests, of all that was wanted
            here; None where the system does not say.
    """

    num_streams: int
    num_ticks: int
    num_warmup_ticks: int
    is_ahead: bool
    tick: Spread
    ready: Spread
    num_misses: int
    parts: dict[str, PartFigures]
    sum_over_tick: float
    ceiling_ms: float
    num_boxes: float
    memory: Memory
    rates: Rates
    stolen_share: float | None

    @property
    def misses_per_1000(self) -> float:
        """Deadline misses per 1000 ticks."""
        return 1000.0 * self.num_misses / self.num_ticks

    def as_json(self) -> dict:
        """Plain values, rounded to what a clock can tell."""
        plain = asdict(self) | {"misses_per_1000": self.misses_per_1000, "deadline_ms": DEADLINE_MS}
        for part in plain["parts"].values():
            part |= part.pop("spread")
        return _rounded(plain)


def spread(times_ms_T: NDArray) -> Spread:
    """Percentiles of times."""
    p50, p95, p99 = np.percentile(times_ms_T, [50, 95, 99])
    return Spread(
        *(float(value) for value in (p50, p95, p99, np.mean(times_ms_T), np.max(times_ms_T)))
    )


def count_misses(tick_ms_T: NDArray) -> int:
    """Ticks that take longer than a tick lasts."""
    return int((np.asarray(tick_ms_T) > DEADLINE_MS).sum())


def ceiling_ms(work: Work, rates: Rates) -> float:
    """Least time for a part's work: the slower of arithmetic and memory, which may overlap."""
    return 1e3 * max(work.flops / rates.flops_per_s, work.num_bytes / rates.bytes_per_s)


def make_report(
    log: TickLog,
    *,
    num_streams: int,
    num_warmup_ticks: int,
    is_ahead: bool,
    work: Mapping[str, Work],
    memory: Memory,
    rates: Rates,
    stolen_share: float | None,
) -> Report:
    """Figures of a run.

    Args:
        log: times of the measured ticks.
        num_streams, num_warmup_ticks, is_ahead: as they were.
        work: per part; parts that are absent have no ceiling.
        memory, rates, stolen_share: of the same run.
    """
    parts = {
        name: _part(times_ms_T, work.get(name), rates) for name, times_ms_T in log.parts_ms.items()
    }
    work_ms = float(sum(times_ms_T.mean() for times_ms_T in log.parts_ms.values()))
    return Report(
        num_streams=num_streams,
        num_ticks=len(log.tick_ms_T),
        num_warmup_ticks=num_warmup_ticks,
        is_ahead=is_ahead,
        tick=spread(log.tick_ms_T),
        ready=spread(log.ready_ms_T),
        num_misses=count_misses(log.tick_ms_T),
        parts=parts,
        sum_over_tick=1.0 - float(log.parts_ms[OTHER].mean()) / work_ms,
        ceiling_ms=sum(part.share * (part.ceiling_ms or 0.0) for part in parts.values()),
        num_boxes=log.num_boxes,
        memory=memory,
        rates=rates,
        stolen_share=stolen_share,
    )


def _part(times_ms_T: NDArray, work: Work | None, rates: Rates) -> PartFigures:
    ran_T = times_ms_T != 0
    times = spread(times_ms_T[ran_T] if ran_T.any() else times_ms_T)
    share = float(ran_T.mean()) if ran_T.any() else 1.0
    if work is None:
        return PartFigures(times, share)
    least_ms = ceiling_ms(work, rates)
    return PartFigures(
        times,
        share,
        gflop=work.flops / 1e9,
        megabytes=work.num_bytes / 1e6,
        ceiling_ms=least_ms,
        ratio=times.p50_ms / least_ms,
    )


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
