"""Time and turns: a monotonic clock at which all threads of a session wait, and the ticks' times.

Tick n is due at start + n ticks, which is when its picture is chosen, and heard `delay_s` later.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Times are compared after additions of floats; a tick is not missed by their rounding.
EPSILON_S = 1e-9


class Clock:
    """Monotonic seconds, and the one lock under which the threads of a session share their state.

    Attributes:
        changed: hold it to read or write what is shared; `wait_for` gives it up meanwhile.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def now_s(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def wait_for(self, is_done: Callable[[], bool], *, until_s: float = math.inf) -> bool:
        """Waits, with `changed` held, until something is true or a moment has come.

        Returns:
            What `is_done` said last.
        """
        while not is_done():
            left_s = until_s - self.now_s()
            if left_s <= 0:
                return is_done()
            # Bounded, so that an interrupt is never far away.
            self.changed.wait(min(left_s, 1.0))
        return True


@dataclass(frozen=True)
class Schedule:
    """When each tick is due and when it is heard.

    Attributes:
        start_s: when tick 0 is due, on the clock.
        delay_s: from a tick's being due to its being heard; what a model may be late by.
        tick_s: length of a tick.
    """

    start_s: float
    delay_s: float
    tick_s: float

    def due_s(self, tick: int) -> float:
        """When tick `tick` takes its picture."""
        return self.start_s + tick * self.tick_s

    def heard_s(self, tick: int) -> float:
        """When the sound of tick `tick` begins; later it is of no use."""
        return self.due_s(tick) + self.delay_s

    def choose(self, following: int, *, now_s: float, cost_s: float) -> int:
        """The tick to work on next: the oldest one that can still be ready in time.

        It may be the next one to be due. When ticks take longer than the delay none can be ready,
        and it is the newest one that is due, so that a model that is too slow keeps its pace.

        Args:
            following: the tick after the last one worked on.
            now_s: the time.
            cost_s: how long a tick takes from its picture to its sound.
        """
        if cost_s > self.delay_s:
            return max(following, self._floor(now_s - self.start_s))
        return max(following, -self._floor(self.heard_s(0) - now_s - cost_s))

    def _floor(self, seconds: float) -> int:
        return math.floor((seconds + EPSILON_S) / self.tick_s)
