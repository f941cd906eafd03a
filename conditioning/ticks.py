"""Causal resampling by timestamps: each tick of the clock shows the newest item already there."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

from spatial_v2a.timing import Timing

Item = TypeVar("Item")


def causal_ticks(
    timed_items: Iterable[tuple[Fraction, Item]],
    *,
    num_ticks: int,
    timing: Timing,
    tolerance_s: Fraction = Fraction(0),
) -> Iterator[Item]:
    """Yields one item per tick: at tick n the newest one with time <= n / tick_hz.

    The last item is held to the end. Should the first item come late, it also stands for the ticks
    before it (a player shows it there too). Items are pulled one ahead and never kept.

    Args:
        timed_items: (time in seconds from the start, item) in order of time; read lazily.
        num_ticks: ticks to produce.
        timing: the clock.
        tolerance_s: how much later than the tick a time may read; for timestamps which a container
            rounded to its own unit, half of that unit.

    Raises:
        ValueError: there is no item at all.
    """
    items = iter(timed_items)
    upcoming = next(items, None)
    if upcoming is None:
        raise ValueError("nothing to resample: there is no item")
    current = upcoming[1]
    for tick in range(num_ticks):
        limit_s = timing.tick_time_s(tick) + tolerance_s
        while upcoming is not None and upcoming[0] <= limit_s:
            current = upcoming[1]
            upcoming = next(items, None)
        yield current
    # The rest is read too, so that the reader can notice an early end of its file.
    for _ in items:
        pass
