"""Times the parts of a tick by wrapping methods of the loaded objects; the product's code stays.

Legend: T ticks.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Place(NamedTuple):
    """A method of one object whose calls belong to a part."""

    part: str
    owner: Any
    method: str


class Stopwatch:
    """Adds up how much a clock advances inside each part.

    Args:
        clock: any counter that only grows; seconds by default.
        synchronize: called before each reading, so that a GPU has finished what it was given.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        synchronize: Callable[[], None] | None = None,
    ) -> None:
        self._clock = clock
        self._synchronize = synchronize
        self._spent: dict[str, float] = {}

    def read(self) -> float:
        """The clock, once everything asked for is done."""
        if self._synchronize is not None:
            self._synchronize()
        return self._clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside towards a part; several times in a tick add up."""
        begin = self.read()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + self.read() - begin

    def lap(self) -> dict[str, float]:
        """Hands over what each part took since the last lap."""
        spent, self._spent = self._spent, {}
        return spent


@contextmanager
def timed(stopwatch: Stopwatch, places: Iterable[Place]) -> Iterator[None]:
    """Times every call of the places; on leaving, the objects are as they were."""
    wrapped: list[tuple[Any, str]] = []
    try:
        for place in places:
            assert place.method not in vars(place.owner), f"{place} is wrapped already"
            method = getattr(place.owner, place.method)
            # On the instance: its class, and so every other model, keeps the plain method.
            setattr(place.owner, place.method, _timed_call(stopwatch, place.part, method))
            wrapped.append((place.owner, place.method))
        yield
    finally:
        for owner, method_name in wrapped:
            delattr(owner, method_name)


def _timed_call(stopwatch: Stopwatch, part: str, method: Callable) -> Callable:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with stopwatch.part(part):
            return method(*args, **kwargs)

    return call
