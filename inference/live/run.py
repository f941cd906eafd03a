"""What the threads of a session share: the time, where the run ends, and the first failure."""

import math
import threading
from collections.abc import Callable

from spatial_v2a.inference.live.clock import Clock, Schedule
from spatial_v2a.inference.live.figures import Figures

# A thread that does not end, say in a camera's driver, is left behind after this.
JOIN_S = 2.0


class Run:
    """The common state of one session; attributes are read and written with `clock.changed` held.

    Args:
        clock: the time and the lock.
        schedule: when ticks are due; None until the first picture is there.
        max_ticks: the run ends there at the latest; None does not end.

    Attributes:
        figures: what is counted.
        end_tick: first tick that is no more, where it is known.
        lost_end_s: when a source that is lost is given up, on the clock.
        is_over: nobody needs anything more.
    """

    def __init__(self, clock: Clock, *, max_ticks: int | None = None) -> None:
        self.clock = clock
        self.schedule: Schedule | None = None
        self.figures = Figures()
        self.end_tick = max_ticks
        self.lost_end_s: float | None = None
        self.is_over = False
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Runs `work` on a thread; its failure ends the run."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # handed over whole: the main thread is the one to fail
                self.stop(error)

        thread = threading.Thread(target=guarded, name=f"live-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self, failure: BaseException | None = None) -> None:
        """Tells every thread to end; the first failure is kept."""
        with self.clock.changed:
            self._failure = self._failure or failure
            self.is_over = True
            self.clock.changed.notify_all()

    def join(self) -> None:
        """Waits for the threads to end after `stop`."""
        for thread in self._threads:
            thread.join(JOIN_S)

    def check(self) -> None:
        """Raises the failure of a thread, if there was one."""
        if self._failure is not None:
            raise self._failure

    def end_at(self, tick: int) -> None:
        """Ends the run before `tick`, unless it ends sooner anyway."""
        with self.clock.changed:
            self.end_tick = tick if self.end_tick is None else min(tick, self.end_tick)
            self.clock.changed.notify_all()

    def is_past_end(self, tick: int) -> bool:
        """Whether `tick` is beyond the end that is known for good."""
        return self.end_tick is not None and tick >= self.end_tick

    def is_given_up(self, tick: int) -> bool:
        """Whether a lost source has not come back in time for `tick`; ask when it is due."""
        if self.lost_end_s is None or self.schedule is None:
            return False
        return self.schedule.due_s(tick) >= self.lost_end_s

    def wait_for(self, is_done: Callable[[], bool], *, until_s: float = math.inf) -> bool:
        """`Clock.wait_for` that also ends with the run; False when it is over."""
        self.clock.wait_for(lambda: self.is_over or is_done(), until_s=until_s)
        return not self.is_over
