"""Simulated time, scripted sources and a known sound, for tests of live sessions.

Simulated time stands still while any thread works and jumps to the next deadline when all wait, so
a minute of waiting costs nothing and machines that are busy change nothing.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace

import numpy as np

from spatial_v2a.inference.live.clock import Clock
from spatial_v2a.inference.live.pictures import Picture, SourceLost
from spatial_v2a.timing import TIMING

TICK_S = float(TIMING.tick_s)
TONE_HZ, TONE_LEVEL = 220.0, 0.5
# Largest step between two samples of the tone.
TONE_STEP = 2 * math.pi * TONE_HZ / TIMING.sample_rate_hz * TONE_LEVEL


class SimulatedClock(Clock):
    """A clock whose time is moved by waiting only; for one session at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 100.0
        self._waiting: dict[int, tuple[Callable[[], bool], float]] = {}

    def now_s(self) -> float:
        return self._now_s

    def wait_for(self, is_done: Callable[[], bool], *, until_s: float = math.inf) -> bool:
        me = threading.get_ident()
        self._waiting[me] = (is_done, until_s)
        try:
            while not is_done():
                if until_s <= self._now_s:
                    return is_done()
                if not self._advance():
                    # Polled, since a thread that ends tells nobody.
                    self.changed.wait(0.01)
            return True
        finally:
            del self._waiting[me]

    def sleep(self, seconds: float) -> None:
        """Lets simulated time go by."""
        with self.changed:
            self.wait_for(lambda: False, until_s=self._now_s + seconds)

    def _advance(self) -> bool:
        busy = {t.ident for t in threading.enumerate() if t.name.startswith("live-")}
        if not _is_joining(threading.main_thread()):
            busy.add(threading.main_thread().ident)
        is_idle = busy == set(self._waiting)
        until_s = min(until_s for _, until_s in self._waiting.values())
        if not is_idle or not self._now_s < until_s < math.inf:
            return False
        if any(is_done() for is_done, _ in self._waiting.values()):
            return False
        self._now_s = until_s
        self.changed.notify_all()
        return True


def _is_joining(thread: threading.Thread) -> bool:
    """Whether a thread waits for the end of others, at the end of a session."""
    frame = sys._current_frames()[thread.ident]
    while frame is not None:
        if frame.f_code is threading.Thread.join.__code__:
            return True
        frame = frame.f_back
    return False


def picture(image_HWC: np.ndarray, *, time_s: Fraction | None = None, num_damaged=0) -> Picture:
    return Picture(time_s, lambda max_width: image_HWC, num_damaged)


@dataclass
class TimedSource:
    """Pictures with times of their own, as a file has them."""

    items: list[Picture]
    num_ticks: int | None = None
    name: str = "scripted"
    is_paced: bool = True
    tolerance_s: Fraction = Fraction(0)
    patience_s: float = TICK_S / 4
    hold_s: float | None = None
    retry_s: float | None = None
    is_lost_after: bool = False

    def pictures(self) -> Iterator[Picture]:
        yield from self.items
        if self.is_lost_after:
            raise SourceLost("torn out")


@dataclass
class CameraSource:
    """Pictures that arrive: (seconds since the one before, image); a new list after each loss."""

    clock: SimulatedClock
    takes: list[list[tuple[float, np.ndarray]]]
    hold_s: float | None = 1.0
    retry_s: float | None = 0.1
    name: str = "scripted camera"
    is_paced: bool = False
    num_ticks: int | None = None
    tolerance_s: Fraction = Fraction(0)
    patience_s: float = 0.0

    def pictures(self) -> Iterator[Picture]:
        if not self.takes:
            raise SourceLost("unplugged")
        for wait_s, image_HWC in self.takes.pop(0):
            self.clock.sleep(wait_s)
            yield picture(image_HWC)
        raise SourceLost("unplugged")


@dataclass
class ToneStream:
    """In a model's place a tone, without a jump however many ticks it makes, at a stated cost."""

    clock: SimulatedClock
    perceive_s: Callable[[int], float] = lambda tick: 0.0
    hear_s: Callable[[int], float] = lambda tick: 0.0
    max_width: int = 64
    num_seen: int = 0
    num_heard: int = 0
    images: list[np.ndarray] = field(default_factory=list)

    def look(self, image_HWC: np.ndarray) -> int:
        self.clock.sleep(self.perceive_s(self.num_seen))
        self.images.append(image_HWC)
        self.num_seen += 1
        return self.num_seen

    def hear(self, number: int) -> SimpleNamespace:
        self.clock.sleep(self.hear_s(self.num_heard))
        length = TIMING.samples_per_tick
        times_L = (np.arange(length) + self.num_heard * length) / TIMING.sample_rate_hz
        self.num_heard += 1
        tone_L = TONE_LEVEL * np.sin(2 * np.pi * TONE_HZ * times_L + 1.0)
        return SimpleNamespace(audio_LC=np.stack([tone_L, -tone_L], axis=1).astype(np.float32))


class ListSink:
    """Keeps the sound; writes of the ticks in `stalls` take so many seconds."""

    delay_s, num_gaps, num_dropped = 0.0, 0, 0

    def __init__(self, clock: SimulatedClock, stalls: dict[int, float] | None = None) -> None:
        self.ticks: list[np.ndarray] = []
        self.times_s: list[float] = []
        self._clock, self._stalls = clock, stalls or {}

    def write(self, audio_LC: np.ndarray) -> None:
        self.times_s.append(self._clock.now_s())
        self._clock.sleep(self._stalls.get(len(self.ticks), 0.0))
        self.ticks.append(audio_LC)

    def close(self) -> None:
        pass

    @property
    def sound_LC(self) -> np.ndarray:
        return np.concatenate(self.ticks)

    @property
    def largest_step(self) -> float:
        return float(np.abs(np.diff(self.sound_LC, axis=0)).max())
