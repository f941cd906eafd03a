"""Pictures between capture and step: a short queue that gives each tick the newest one there.

Legend: H W picture rows and columns, C colours.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.inference.live.clock import Clock

CAPACITY = 8


@dataclass(frozen=True)
class Picture:
    """One captured picture.

    Attributes:
        time_s: when it is shown, from the source's first picture; None for one that is shown when
            it arrives.
        rgb: (max_width) -> uint8 RGB [H, W, 3], scaled down to at most that width where it is the
            source that can; called for pictures that a tick takes, and only then.
        num_damaged: packets lost just before it.
    """

    time_s: Fraction | None
    rgb: Callable[[int], NDArray[np.uint8]]
    num_damaged: int = 0


class Source(Protocol):
    """Where pictures come from.

    Attributes:
        name: what the user calls it.
        is_paced: pictures have times of their own and wait for them; else the newest one counts.
        num_ticks: length of the run where it is known.
        tolerance_s: how much later than a tick the time of its picture may read.
        patience_s: how long a tick waits for the picture after its own to be decoded.
        hold_s: how long sound goes on after the source is lost; None ends it with the last picture.
        retry_s: how often to open a lost source again; None does not.
    """

    name: str
    is_paced: bool
    num_ticks: int | None
    tolerance_s: Fraction
    patience_s: float
    hold_s: float | None
    retry_s: float | None

    def pictures(self) -> Iterator[Picture]:
        """Yields pictures as they come and ends where the source ends.

        Raises:
            SourceLost: the source broke off.
        """
        ...


class SourceLost(Exception):
    """A source broke off; the text says how."""


@dataclass(frozen=True)
class Shown:
    """What a tick sees.

    Attributes:
        picture: the newest one there.
        shown_s: when it was due to be shown or arrived, on the clock.
        is_new: no tick before has seen it.
    """

    picture: Picture
    shown_s: float
    is_new: bool


class PictureQueue:
    """At most CAPACITY pictures, oldest first, under the clock's lock.

    Args:
        clock: the session's.
        is_paced, tolerance_s, patience_s: as in `Source`.

    Attributes:
        is_closed: nobody puts or takes any more.
        num_pictures: came in.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        is_paced: bool,
        tolerance_s: Fraction = Fraction(0),
        patience_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._is_paced, self._tolerance_s, self._patience_s = is_paced, tolerance_s, patience_s
        self._waiting: deque[tuple[Fraction | float, Picture]] = deque()
        self._current: tuple[Fraction | float, Picture] | None = None
        self._is_seen = False
        self.is_closed = False
        self.num_pictures = self._num_unused = 0

    @property
    def has_picture(self) -> bool:
        """Whether there is anything to see yet."""
        return self._current is not None or bool(self._waiting)

    @property
    def num_unused(self) -> int:
        """Pictures that went by without a tick that took them; once closed, those left too."""
        return self._num_unused + (len(self._waiting) if self.is_closed else 0)

    def put(self, picture: Picture) -> bool:
        """Adds a picture: a paced source waits for room, of another the oldest picture goes.

        Returns:
            False when nobody takes pictures any more.
        """
        with self._clock.changed:
            if self._is_paced:
                self._clock.wait_for(lambda: self.is_closed or len(self._waiting) < CAPACITY)
            elif len(self._waiting) == CAPACITY:
                self._advance()
            at_s = picture.time_s if self._is_paced else self._clock.now_s()
            assert at_s is not None, "a paced source gave a picture without a time"
            self._waiting.append((at_s, picture))
            self.num_pictures += 1
            self._clock.changed.notify_all()
            return not self.is_closed

    def take(self, *, tick_time_s: Fraction, due_s: float) -> Shown:
        """What a tick sees: the newest picture shown by then, or the first one if none is.

        Args:
            tick_time_s: the tick's time from the start, exact.
            due_s: the same on the clock.
        """
        with self._clock.changed:
            limit_s = tick_time_s + self._tolerance_s if self._is_paced else due_s
            until_s = self._clock.now_s() + self._patience_s
            self._advance_to(limit_s)
            # A queue that holds nothing later may lag behind: its reader gets a moment.
            while not self._waiting and not self.is_closed:
                if not self._clock.wait_for(self._has_more, until_s=until_s):
                    break
                self._advance_to(limit_s)
            if self._current is None:
                self._advance()
            return self._show(due_s - float(tick_time_s))

    def close(self) -> None:
        """Lets go of whoever waits to put or to take; what is in the queue stays."""
        with self._clock.changed:
            self.is_closed = True
            self._clock.changed.notify_all()

    def _has_more(self) -> bool:
        return bool(self._waiting) or self.is_closed

    def _advance_to(self, limit_s: Fraction | float) -> None:
        while self._waiting and self._waiting[0][0] <= limit_s:
            self._advance()

    def _advance(self) -> None:
        if self._current is not None and not self._is_seen:
            self._num_unused += 1
        self._current, self._is_seen = self._waiting.popleft(), False
        self._clock.changed.notify_all()

    def _show(self, start_s: float) -> Shown:
        assert self._current is not None, "a tick was begun before there was a picture"
        at_s, picture = self._current
        is_new, self._is_seen = not self._is_seen, True
        return Shown(picture, float(at_s) + (start_s if self._is_paced else 0.0), is_new)
