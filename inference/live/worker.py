"""Perception and engine beside each other: while one tick is heard, the next is seen.

At most two ticks are under way, so that none waits longer than the slower half takes.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.inference.engine.pipeline import Pipeline, Seen
from spatial_v2a.inference.live.pictures import PictureQueue, Shown
from spatial_v2a.inference.live.run import Run
from spatial_v2a.timing import TIMING

# What a tick costs is judged by the last half second: all but the two longest of it took no longer,
# and those two were hiccups that say nothing about the next tick.
NUM_COSTS, NUM_HICCUPS = 15, 2
# Ready by a hair is late as often as not.
MARGIN_S = 0.003


@dataclass(frozen=True)
class _Looked:
    """A tick between its halves; times in seconds on the clock, `spent_s` of perception."""

    tick: int
    seen: Seen
    shown: Shown
    begun_s: float
    spent_s: float


@dataclass(frozen=True)
class Heard:
    """A tick's sound [1600, 2] and what it shows."""

    audio_LC: NDArray[np.float32]
    shown: Shown


class Worker:
    """Turns pictures into ticks of sound, in time or not at all.

    Args:
        run: the session; its schedule must be set before the threads start.
        stream: the model.
        queue: pictures in.
    """

    def __init__(self, run: Run, stream: Pipeline, queue: PictureQueue) -> None:
        self._run, self._stream, self._queue = run, stream, queue
        self._seen: _Looked | None = None
        self._heard: dict[int, Heard] = {}
        self._next_heard = 0
        # Nothing is known of the first tick, so it is tried.
        self._costs_s: deque[float] = deque([0.0], maxlen=NUM_COSTS)
        self._size: tuple[int, ...] | None = None
        assert run.schedule is not None
        self._schedule = run.schedule
        self._max_heard = math.ceil(run.schedule.delay_s / run.schedule.tick_s) + 2

    def start(self) -> None:
        """Starts both threads."""
        self._run.start("perceive", self._perceive)
        self._run.start("hear", self._hear)

    def take(self, tick: int) -> Heard | None:
        """The sound of a tick if it is there, with `clock.changed` held; later it is too late."""
        self._next_heard = tick + 1
        heard = self._heard.pop(tick, None)
        self._run.clock.changed.notify_all()
        return heard

    def _perceive(self) -> None:
        following = 0
        while True:
            tick = self._wait_for_tick(following)
            if tick is None:
                return
            schedule = self._schedule
            shown = self._queue.take(
                tick_time_s=TIMING.tick_time_s(tick), due_s=schedule.due_s(tick)
            )
            begun_s = self._run.clock.now_s()
            image_HWC = shown.picture.rgb(self._stream.max_width)
            seen = self._stream.look(image_HWC)
            with self._run.clock.changed:
                spent_s = self._run.clock.now_s() - begun_s
                self._seen = _Looked(tick, seen, shown, begun_s, spent_s)
                self._count(tick - following, shown, image_HWC.shape)
                self._run.clock.changed.notify_all()
            following = tick + 1

    def _wait_for_tick(self, following: int) -> int | None:
        """Waits until the engine has taken the last tick and another is due; None at the end."""
        run = self._run
        with run.clock.changed:
            if not run.wait_for(lambda: self._seen is None):
                return None
            now_s = run.clock.now_s()
            tick = self._schedule.choose(following, now_s=now_s, cost_s=self._cost_s())
            due_s = self._schedule.due_s(tick)
            run.wait_for(lambda: run.is_past_end(tick), until_s=due_s)
            is_wanted = not (run.is_over or run.is_past_end(tick) or run.is_given_up(tick))
            return tick if is_wanted else None

    def _cost_s(self) -> float:
        """How long the next tick is expected to take, from its picture to its sound."""
        usual_s = sorted(self._costs_s)[max(0, len(self._costs_s) - 1 - NUM_HICCUPS)]
        return usual_s + MARGIN_S

    def _hear(self) -> None:
        run = self._run
        while True:
            with run.clock.changed:
                is_wanted = run.wait_for(
                    lambda: self._seen is not None and len(self._heard) < self._max_heard
                )
                if not is_wanted:
                    return
                seen, self._seen = self._seen, None
                run.clock.changed.notify_all()
                assert seen is not None
                if seen.tick < self._next_heard:
                    run.figures.counts.ticks_late += 1
                    continue
            begin_s = run.clock.now_s()
            audio_LC = self._stream.hear(seen.seen).audio_LC
            with run.clock.changed:
                self._finish(seen, audio_LC, seconds=run.clock.now_s() - begin_s)

    def _finish(self, seen: _Looked, audio_LC: NDArray[np.float32], *, seconds: float) -> None:
        run = self._run
        run.figures.add_tick(seen.spent_s + seconds)
        self._costs_s.append(run.clock.now_s() - seen.begun_s)
        if seen.tick < self._next_heard:
            run.figures.counts.ticks_late += 1
            return
        self._heard[seen.tick] = Heard(audio_LC, seen.shown)
        run.clock.changed.notify_all()

    def _count(self, num_skipped: int, shown: Shown, shape: tuple[int, ...]) -> None:
        counts = self._run.figures.counts
        counts.ticks_skipped += num_skipped
        counts.ticks_held += not shown.is_new
        counts.resolution_changes += self._size is not None and shape != self._size
        self._size = shape
