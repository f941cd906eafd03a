"""Which object of a picture has which of a few streams to itself, tick by tick.

An object keeps its stream. When there are more objects than streams, the largest are alone and all
others share the last stream; who shares it takes the next one that is free, and at once that of an
object much smaller than itself. A stream that is to change hands fades out first.
Legend: S streams.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from spatial_v2a.timing import TIMING

# A stream is heard so long after it lost its objects: a gap of the detector changes nothing.
LINGER_TICKS = TIMING.tick_hz // 10
# What is heard no more fades out in so long.
FADE_TICKS = TIMING.tick_hz // 10
# An object gives its stream up to one more than so many times its area: no flapping between equals.
LARGER = 1.5


@dataclass
class Part:
    """What one object stream plays of one object.

    Attributes:
        object_stream: number of the stream, from 0.
        track_id: the object.
        first_tick: when it took the stream over; the part ends where the next one begins.
    """

    object_stream: int
    track_id: int
    first_tick: int


@dataclass(eq=False)
class _Stream:
    """A stream: whose it is, when that was last in the picture, and since when it is given up."""

    owner: int | None = None
    seen_tick: float = -math.inf
    closing_since: int | None = None


@dataclass(frozen=True)
class Allocation:
    """The streams in one tick.

    Attributes:
        objects_S: the objects in the picture that each is for.
        fresh_S: whether it begins anew, for another object.
        plays_S: whether it is to be heard: an object has it, or had it a moment ago.
        owned_S: whether it ever had an object.
        begun: what begins to be played in this tick. Of those who share the last stream one owns
            it, the others play nothing of their own.
    """

    objects_S: list[set[int]]
    fresh_S: list[bool]
    plays_S: list[bool]
    owned_S: list[bool]
    begun: list[Part]


class Allocator:
    """Allocates the objects of one tick after another.

    Args:
        num_streams: S; 0 allocates nothing.
    """

    def __init__(self, num_streams: int) -> None:
        self._streams = [_Stream() for _ in range(num_streams)]
        # Who shares the last stream; empty where it is one object's.
        self._sharers: set[int] = set()
        self._begun: list[Part] = []
        self._tick = 0

    def step(self, area_of: dict[int, float]) -> Allocation:
        """Allocates the objects of a tick.

        Args:
            area_of: area of every object in the picture, by its id.
        """
        fresh_S, self._begun = [False] * len(self._streams), []
        if self._streams:
            self._note_who_is_there(area_of)
            for track_id in self._left(area_of):
                if track_id == self._streams[-1].owner and not self._sharers:
                    continue
                free = [stream for stream in self._streams if self._is_free(stream)]
                if free:
                    stream = min(free, key=lambda stream: stream.seen_tick)
                    fresh_S[self._streams.index(stream)] = True
                    self._give(stream, track_id)
            self._share(area_of)
        allocation = Allocation(
            objects_S=self._objects(area_of),
            fresh_S=fresh_S,
            plays_S=[self._plays(stream) for stream in self._streams],
            owned_S=[stream.owner is not None for stream in self._streams],
            begun=self._begun,
        )
        self._tick += 1
        return allocation

    def _note_who_is_there(self, there: Collection[int]) -> None:
        for stream in self._streams:
            if stream.closing_since is not None and self._tick - stream.closing_since >= FADE_TICKS:
                stream.owner, stream.seen_tick, stream.closing_since = None, -math.inf, None
            if stream.owner in there:
                stream.seen_tick = self._tick
        if self._sharers.intersection(there):
            self._streams[-1].seen_tick = self._tick

    def _left(self, area_of: dict[int, float]) -> list[int]:
        """Objects that only the last stream can be for, largest first, its owner after equals."""
        alone, owner = self._alone(), self._streams[-1].owner
        ranked = sorted(area_of, key=lambda i: (-area_of[i], i == owner))
        return [i for i in ranked if i not in alone]

    def _alone(self) -> set[int | None]:
        """Owners of all streams but the last, and but those that are given up."""
        return {stream.owner for stream in self._streams[:-1] if stream.closing_since is None}

    def _is_free(self, stream: _Stream) -> bool:
        """Whether a stream has no object and is not heard any more."""
        gone_ticks = self._tick - stream.seen_tick
        return stream.closing_since is None and gone_ticks > LINGER_TICKS + FADE_TICKS

    def _give(self, stream: _Stream, track_id: int) -> None:
        stream.owner, stream.seen_tick = track_id, self._tick
        self._begun.append(Part(self._streams.index(stream), track_id, self._tick))

    def _share(self, area_of: dict[int, float]) -> None:
        """Gives the last stream to all who are left; the largest of several may get another's."""
        last, left = self._streams[-1], self._left(area_of)
        if len(left) > 1:
            self._make_room(area_of, area=area_of[left[0]])
            left = self._left(area_of)
        if last.owner in self._alone():
            last.owner = None
        if left:
            last.seen_tick = self._tick
            if last.owner not in left:
                self._give(last, left[0])
        self._sharers = set(left) if len(left) > 1 else set()

    def _make_room(self, area_of: dict[int, float], *, area: float) -> None:
        """Closes the stream of the smallest object where that is much smaller than `area`."""
        if any(stream.closing_since is not None for stream in self._streams):
            return
        there = [stream for stream in self._streams[:-1] if stream.owner in area_of]
        smallest = min(there, key=lambda stream: area_of[stream.owner], default=None)
        if smallest is not None and area > LARGER * area_of[smallest.owner]:
            smallest.closing_since = self._tick

    def _objects(self, area_of: dict[int, float]) -> list[set[int]]:
        if not self._streams:
            return []
        alone = [{stream.owner} & area_of.keys() for stream in self._streams[:-1]]
        return [*alone, set(self._left(area_of))]

    def _plays(self, stream: _Stream) -> bool:
        return stream.closing_since is None and self._tick - stream.seen_tick <= LINGER_TICKS
