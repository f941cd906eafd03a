"""Track persistence: a vanished object stays where it was for a moment, and so does its sound.

Detected and given boxes go through this one class. What it holds depends on the boxes, depth grids
and turns of the camera before and nothing else, so a tracks file needs only the boxes that were
really seen.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.conditioning.box_fields import FORGET_AFTER_S, Box, Motion
from spatial_v2a.conditioning.tracking import mean_score
from spatial_v2a.geometry import azimuth_rad, column, nearness_in_boxes
from spatial_v2a.timing import TIMING

# What was there more briefly may have been a mistake of the detector.
MIN_SEEN_TICKS = 3
# A box that would reach an edge within this time left the picture there.
REACH_S = 0.2
# What was seen for less than this is held for this long, if at all: it may be a mistake, too.
BRIEF_TICKS = TIMING.tick_hz
# A tracker carries a lost box on for up to twelve ticks, beside the one that takes its place.
OVERLAP_TICKS = 13
# Who was this much less sure than one that is seen, by the means of their scores, is not held.
SURE_SHARE = 0.75
# As a share of the picture: a detector that is off by a pixel or two still sees the edge touched.
EDGE_MARGIN = 0.01


@dataclass
class _Track:
    """What is known of an object.

    Attributes:
        box: as it was seen last.
        motion: of the boxes seen.
        first_tick: when it was seen first.
        company: ids that were in the picture or held when it was seen last, its own among them.
        num_seen: ticks in which it was seen.
        sureness: mean of its last scores.
        held: the box that stands for it now, or None.
        azimuth_rad: where that is, positive to the left, also outside the picture; None as long as
            the camera has not turned.
    """

    box: Box
    motion: Motion
    first_tick: int
    company: frozenset[int]
    num_seen: int = 0
    sureness: float = 0.0
    held: Box | None = None
    azimuth_rad: float | None = None


class TrackPersistence:
    """Per-stream memory that goes on showing an object for a while; call once per tick, in order.

    An object that was seen in three ticks or more stays, once its box is gone, with class, size,
    score and nearness as they were: at the edge that it touched or would have touched within 0.2 s,
    otherwise where it was. As the camera turns it stays where it is in the world, at the nearer
    edge as long as that is out of the picture. All of this ends when its box is back, when a box
    of its class comes that was not there with it, or not until its last moment (most likely the
    same object), when it is silenced, and with the time: when it is gone for as long as it was
    seen, which counts as a second at least, or for `persistence_s`. Beside an object in view that
    is much surer than it was it is not shown.

    Args:
        persistence_s: how long at most, seconds, to the nearest tick; 0 holds nothing.
        sure_share: who was less sure than this share of one that is seen is not held; None is
            SURE_SHARE.
    """

    def __init__(self, *, persistence_s: float, sure_share: float | None = None) -> None:
        self._sure_share = SURE_SHARE if sure_share is None else sure_share
        self._persistence_ticks = round(persistence_s * TIMING.tick_hz)
        self._memory_ticks = max(self._persistence_ticks, round(FORGET_AFTER_S * TIMING.tick_hz))
        self.reset()

    def reset(self) -> None:
        """Forgets every object."""
        self._tracks: dict[int, _Track] = {}
        self._nearness_HW: NDArray | None = None
        self._tick = 0

    @property
    def track_ids(self) -> tuple[int, ...]:
        """Ids of the objects that are remembered, held or not."""
        return tuple(self._tracks)

    def forget(self, track_ids: Iterable[int]) -> None:
        """Holds these objects no longer, nor before they were seen anew."""
        for track_id in track_ids:
            self._tracks.pop(track_id, None)

    def step(
        self,
        boxes: Sequence[Box],
        *,
        nearness_HW: NDArray | None = None,
        turn_deg: float = 0.0,
        fov_deg: float | None = None,
        silenced: Sequence[Box] = (),
    ) -> list[Box]:
        """The boxes of this tick and, behind them, those that are held (`Box.is_persisted`).

        Args:
            boxes: seen in this tick, with track ids.
            nearness_HW: depth grid in which a missing nearness of theirs is read, should they be
                held later; without it that is 0. It is kept for a tick and must not change.
            turn_deg: how far the camera turned to the left since the tick before.
            fov_deg: horizontal field of view in degrees, without which nothing turns.
            silenced: boxes of this tick that make no sound: seen, but neither given back nor held.
        """
        self.forget(box.track_id for box in silenced)
        in_picture = [*boxes, *silenced]
        seen_ids = {box.track_id for box in boxes}
        lost = {i: track for i, track in self._tracks.items() if i not in seen_ids}
        for track in lost.values():
            self._hold(track, in_picture)
            if track.held is not None and turn_deg != 0.0 and fov_deg is not None:
                _turn(track, turn_deg, fov_deg)
        held = self._sure_enough(lost.values(), seen_ids)
        company = frozenset(box.track_id for box in (*in_picture, *held))
        for box in boxes:
            self._see(box, company)
        self._nearness_HW = nearness_HW
        self._tick += 1
        limit = self._tick - self._memory_ticks
        self._tracks = {i: t for i, t in self._tracks.items() if t.motion.last_tick >= limit}
        return [*boxes, *held]

    def _sure_enough(self, lost: Iterable[_Track], seen_ids: set[int]) -> list[Box]:
        """Held boxes of the lost, but for those that were far less sure than one that is seen."""
        seen = [track.sureness for i, track in self._tracks.items() if i in seen_ids]
        needed = self._sure_share * max(seen, default=0.0)
        return [t.held for t in lost if t.held is not None and t.sureness >= needed]

    def _see(self, box: Box, company: frozenset[int]) -> None:
        track = self._tracks.get(box.track_id)
        if track is None:
            track = _Track(box, Motion(self._tick, box.cx, box.cy), self._tick, company)
            self._tracks[box.track_id] = track
        else:
            track.motion.follow(box, self._tick)
        track.box, track.company = box, company
        track.held = track.azimuth_rad = None
        track.num_seen += 1
        track.sureness = mean_score(track.sureness, box.score, count=track.num_seen)

    def _hold(self, track: _Track, in_picture: Sequence[Box]) -> None:
        """Begins to hold an object, goes on with it or ends it."""
        ticks_unseen = self._tick - track.motion.last_tick
        if ticks_unseen == 1 and track.num_seen >= MIN_SEEN_TICKS:
            track.held = _held(track.box, track.motion, self._nearness_HW)
        is_replaced = any(self._replaces(box, track) for box in in_picture)
        most_ticks = min(self._persistence_ticks, max(BRIEF_TICKS, track.num_seen))
        if is_replaced or ticks_unseen > most_ticks:
            track.held = None

    def _replaces(self, box: Box, track: _Track) -> bool:
        if box.class_index != track.box.class_index:
            return False
        if box.track_id not in track.company:
            return True
        other = self._tracks.get(box.track_id)
        latest = max(track.motion.last_tick - OVERLAP_TICKS, track.first_tick)
        return other is not None and other.first_tick > latest


def _held(box: Box, motion: Motion, nearness_HW: NDArray | None) -> Box:
    """The box that stands for an object from now on.

    Args:
        box: as it was seen last.
        motion: of the object.
        nearness_HW: depth grid of that tick, or None.
    """
    near = box.nearness
    if near is None:
        corners_14 = np.array([[box.cx, box.cy, box.w, box.h]])
        near = 0.0 if nearness_HW is None else float(nearness_in_boxes(nearness_HW, corners_14)[0])
    cx, cy = _settled(box.cx, box.w, motion.vx), _settled(box.cy, box.h, motion.vy)
    return replace(box, cx=cx, cy=cy, nearness=near, is_persisted=True)


def _turn(track: _Track, turn_deg: float, fov_deg: float) -> None:
    """Moves what is held of a track against the turn of the camera."""
    assert track.held is not None
    now_rad = track.azimuth_rad
    if now_rad is None:
        now_rad = float(azimuth_rad(track.held.cx, fov_deg))
    # All around is a full circle.
    track.azimuth_rad = math.remainder(now_rad - math.radians(turn_deg), math.tau)
    half = min(track.held.w, 1.0) / 2
    cx = float(track.azimuth_rad < 0)
    if abs(track.azimuth_rad) < math.radians(fov_deg) / 2:
        cx = column(track.azimuth_rad, fov_deg)
    track.held = replace(track.held, cx=min(max(cx, half), 1.0 - half))


def _settled(centre: float, size: float, speed: float) -> float:
    """Where a box is held along one axis: at the edge it touches or would soon touch, or there.

    Args:
        centre, size: as fractions of the picture.
        speed: of the centre, fractions per second.
    """
    way = speed * REACH_S
    is_low = centre - size / 2 + min(way, 0.0) <= EDGE_MARGIN
    is_high = centre + size / 2 + max(way, 0.0) >= 1.0 - EDGE_MARGIN
    if is_low == is_high:
        return centre
    # A box that already hangs over its edge stays: what shows of it touches the edge.
    return min(centre, size / 2) if is_low else max(centre, 1.0 - size / 2)
