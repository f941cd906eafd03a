"""Tracks: boxes followed from tick to tick, and shown on for a moment when they vanish.

The tracker is light, one per stream, and shows new objects at once.
Two rounds of assignment, strong boxes first, weak ones only to extend tracks (after ByteTrack,
Zhang et al. 2022, section 3), on the overlap of boxes moved by their own smoothed velocity.
Annotated and detected boxes go through one `TrackPersistence`: an object's sound does not end with
its box. What it shows depends on the boxes, depth grids and turns of the camera before and nothing
else, so a tracks file needs only the boxes that were really seen.
Legend: K boxes or tracks, N detections; boxes are cx, cy, w, h as fractions of the picture.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import lap
import numpy as np
from numpy.typing import NDArray

from spatial_v2a.conditioning.boxes import FORGET_AFTER_S, Box, Motion
from spatial_v2a.conditioning.detections import Detections, Region
from spatial_v2a.geometry import azimuth_rad, column, nearness_in_boxes
from spatial_v2a.timing import TIMING

# Boxes are enlarged before overlap is measured, so that small fast objects are not lost.
OVERLAP_MARGIN = 1.6
CLASS_PENALTY = 0.15
STRONG_COST_LIMIT = 0.9
WEAK_COST_LIMIT = 0.6
POSITION_WEIGHT = 0.75
VELOCITY_WEIGHT = 0.4
CLASS_MEMORY = 0.9
FORGET_AFTER_TICKS = TIMING.tick_hz
# A track seen at least MIN_COAST_HITS times is carried on over short gaps of the detector.
COAST_TICKS = 5
COAST_SCORE = 0.7
MIN_COAST_HITS = 3
# What is smaller than this may be seen by zoomed detection only, so that a tick in which that went
# elsewhere says nothing; but not for longer than this.
SMALL_SIDE = 0.3
LOOKED_AWAY_TICKS = 12
# Weak boxes alone carry a track on for this long: some things only look like an object at times.
WEAK_TICKS = TIMING.tick_hz
# What is looked for in vain goes on, more slowly every time: objects turn, and errors add up.
UNSEEN_SLOWDOWN = 0.8
# A thing is not shown whose mean score is below this share of the surest one's: scenery that looks
# a little like an object, beside an object.
SURE_SHARE = 0.7
SURENESS_TICKS = TIMING.tick_hz


def mean_score(before: float, score: float, *, count: int) -> float:
    """The mean of an object's scores, with one more of them; old ones fade after a second.

    Args:
        before: the mean of those before.
        score: of the one more.
        count: how many there are with it.
    """
    return before + (score - before) / min(count, SURENESS_TICKS)


@dataclass
class _Track:
    track_id: int
    box_4: NDArray
    velocity_4: NDArray
    class_votes: dict[int, float]
    score: float
    sureness: float
    num_hits: int = 1
    num_missed: int = 0  # times it was looked for and not found since it was seen last
    ticks_unseen: int = 0
    num_weak: int = 0

    @property
    def class_index(self) -> int:
        return max(self.class_votes, key=lambda label: self.class_votes[label])


class BoxTracker:
    """Gives the detections of one stream lasting ids, a steady class and short-gap coasting.

    Args:
        new_track_score: confidence a box needs to begin a track.
        sure_share: a thing whose mean score is below this share of the surest one's is not shown;
            None is SURE_SHARE.
    """

    def __init__(self, *, new_track_score: float, sure_share: float | None = None) -> None:
        self.new_track_score = new_track_score
        self._sure_share = SURE_SHARE if sure_share is None else sure_share
        self.reset()

    def reset(self) -> None:
        """Forgets every track; ids begin at 1 again."""
        self._next_id = 1
        self.end_tracks()

    def end_tracks(self) -> None:
        """Forgets every track; ids go on, so that none means two objects."""
        self._tracks: list[_Track] = []

    def step(self, found: Detections | None) -> list[Box]:
        """Boxes of this tick's tracks; a new object is there in the tick that first shows it.

        Args:
            found: what the detector saw, None when it was not asked: then tracks just move on.
        """
        for track in self._tracks:
            track.box_4 = track.box_4 + track.velocity_4
            track.num_weak += 1
            track.ticks_unseen += 1
        if found is not None:
            self._match(found)
        self._tracks = [t for t in self._tracks if t.ticks_unseen <= FORGET_AFTER_TICKS]
        there = [track for track in self._tracks if _is_shown(track)]
        needed = self._sure_share * max((track.sureness for track in there), default=0.0)
        shown = [_visible(track) for track in there if track.sureness >= needed]
        # At the very edge nothing may be left of a box.
        return [box for box in shown if box.w > 0 and box.h > 0]

    def _match(self, found: Detections) -> None:
        """Gives the detections to the tracks, and begins tracks with those that are left."""
        boxes_N4 = _centre_size(found.corners_K4)
        is_strong_N = found.score_K >= self.new_track_score
        waiting = list(range(len(self._tracks)))
        strong, weak = np.flatnonzero(is_strong_N), np.flatnonzero(~is_strong_N)
        waiting, unmatched = self._assign(waiting, strong, boxes_N4, found, STRONG_COST_LIMIT)
        waiting, _ = self._assign(waiting, weak, boxes_N4, found, WEAK_COST_LIMIT)
        for k in waiting:
            self._tracks[k].velocity_4 = UNSEEN_SLOWDOWN * self._tracks[k].velocity_4
            if not _is_looked_away(self._tracks[k], found.zoomed_region):
                self._tracks[k].num_missed += 1
        for n in unmatched:
            score = float(found.score_K[n])
            votes = {int(found.class_K[n]): score}
            track = _Track(self._next_id, boxes_N4[n], np.zeros(4), votes, score, sureness=score)
            self._tracks.append(track)
            self._next_id += 1

    def _assign(
        self,
        waiting: list[int],
        candidates: NDArray,
        boxes_N4: NDArray,
        found: Detections,
        cost_limit: float,
    ) -> tuple[list[int], list[int]]:
        """Matches waiting tracks with candidates; returns what is left of both."""
        if not waiting or not len(candidates):
            return waiting, [int(n) for n in candidates]
        tracks_K4 = np.stack([self._tracks[k].box_4 for k in waiting])
        cost_KN = 1.0 - _overlap(tracks_K4, boxes_N4[candidates])
        labels_K = np.array([self._tracks[k].class_index for k in waiting])
        cost_KN += CLASS_PENALTY * (labels_K[:, None] != found.class_K[candidates][None, :])
        _, match_K, match_N = lap.lapjv(cost_KN, extend_cost=True, cost_limit=cost_limit)
        for k, place in zip(waiting, match_K, strict=True):
            if place >= 0:
                n = int(candidates[place])
                label, score = int(found.class_K[n]), float(found.score_K[n])
                _update(self._tracks[k], boxes_N4[n], label, score)
                if score >= self.new_track_score:
                    self._tracks[k].num_weak = 0
        left_tracks = [k for k, place in zip(waiting, match_K, strict=True) if place < 0]
        left = [int(n) for n, row in zip(candidates, match_N, strict=True) if row < 0]
        return left_tracks, left


def _update(track: _Track, box_4: NDArray, label: int, score: float) -> None:
    error_4 = box_4 - track.box_4
    weight = 1.0 if track.num_hits == 1 else VELOCITY_WEIGHT
    track.velocity_4 = track.velocity_4 + weight * error_4 / track.ticks_unseen
    track.velocity_4[2:] *= 0.5
    track.box_4 = track.box_4 + POSITION_WEIGHT * error_4
    votes = {known: CLASS_MEMORY * value for known, value in track.class_votes.items()}
    votes[label] = votes.get(label, 0.0) + score
    track.class_votes = votes
    track.score = score
    track.num_hits += 1
    track.sureness = mean_score(track.sureness, score, count=track.num_hits)
    track.num_missed = 0
    track.ticks_unseen = 0


def _is_looked_away(track: _Track, zoomed_region: Region | None) -> bool:
    """Whether a track was not found where only zoomed detection, which went elsewhere, finds it."""
    if zoomed_region is None or track.ticks_unseen > LOOKED_AWAY_TICKS:
        return False
    cx, cy, w, h = track.box_4
    return max(w, h) < SMALL_SIDE and not zoomed_region.holds(cx, cy)


def _is_shown(track: _Track) -> bool:
    if track.num_weak > WEAK_TICKS:
        return False
    if track.ticks_unseen == 0:
        return True
    cx, cy = track.box_4[:2]
    if not (0.0 < cx < 1.0 and 0.0 < cy < 1.0):
        return False
    is_steady = track.num_hits >= MIN_COAST_HITS and track.ticks_unseen <= COAST_TICKS
    return is_steady or track.num_missed == 0


def _visible(track: _Track) -> Box:
    """The part of the track's box that lies in the picture."""
    low = np.clip(track.box_4[:2] - track.box_4[2:] / 2, 0.0, 1.0)
    high = np.clip(track.box_4[:2] + track.box_4[2:] / 2, 0.0, 1.0)
    cx, cy = (low + high) / 2
    w, h = high - low
    return Box(
        track_id=track.track_id,
        class_index=track.class_index,
        cx=float(cx),
        cy=float(cy),
        w=float(w),
        h=float(h),
        score=track.score * COAST_SCORE**track.num_missed,
    )


def _centre_size(corners_K4: NDArray) -> NDArray:
    low, high = corners_K4[:, :2].astype(float), corners_K4[:, 2:].astype(float)
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def _overlap(a_K4: NDArray, b_N4: NDArray) -> NDArray:
    """Intersection over union of enlarged boxes, [K, N]."""
    a, b = a_K4[:, None], b_N4[None]
    half_a = np.maximum(a[..., 2:], 1e-6) * OVERLAP_MARGIN / 2
    half_b = np.maximum(b[..., 2:], 1e-6) * OVERLAP_MARGIN / 2
    low = np.maximum(a[..., :2] - half_a, b[..., :2] - half_b)
    high = np.minimum(a[..., :2] + half_a, b[..., :2] + half_b)
    common = np.clip(high - low, 0.0, None).prod(axis=-1)
    union = (4 * half_a.prod(axis=-1)) + (4 * half_b.prod(axis=-1)) - common
    return common / union


# What was there more briefly may have been a mistake of the detector.
MIN_SEEN_TICKS = 3
# A box that would reach an edge within this time left the picture there.
REACH_S = 0.2
# What was seen for less than this is held for this long, if at all: it may be a mistake, too.
BRIEF_TICKS = TIMING.tick_hz
# A tracker carries a lost box on for up to twelve ticks, beside the one that takes its place.
OVERLAP_TICKS = 13
# Who was this much less sure than one that is seen, by the means of their scores, is not held.
LASTING_SURE_SHARE = 0.75
# As a share of the picture: a detector that is off by a pixel or two still sees the edge touched.
EDGE_MARGIN = 0.01


@dataclass
class _Lasting:
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
            LASTING_SURE_SHARE.
    """

    def __init__(self, *, persistence_s: float, sure_share: float | None = None) -> None:
        self._sure_share = LASTING_SURE_SHARE if sure_share is None else sure_share
        self._persistence_ticks = round(persistence_s * TIMING.tick_hz)
        self._memory_ticks = max(self._persistence_ticks, round(FORGET_AFTER_S * TIMING.tick_hz))
        self.reset()

    def reset(self) -> None:
        """Forgets every object."""
        self._tracks: dict[int, _Lasting] = {}
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

    def _sure_enough(self, lost: Iterable[_Lasting], seen_ids: set[int]) -> list[Box]:
        """Held boxes of the lost, but for those that were far less sure than one that is seen."""
        seen = [track.sureness for i, track in self._tracks.items() if i in seen_ids]
        needed = self._sure_share * max(seen, default=0.0)
        return [t.held for t in lost if t.held is not None and t.sureness >= needed]

    def _see(self, box: Box, company: frozenset[int]) -> None:
        track = self._tracks.get(box.track_id)
        if track is None:
            track = _Lasting(box, Motion(self._tick, box.cx, box.cy), self._tick, company)
            self._tracks[box.track_id] = track
        else:
            track.motion.follow(box, self._tick)
        track.box, track.company = box, company
        track.held = track.azimuth_rad = None
        track.num_seen += 1
        track.sureness = mean_score(track.sureness, box.score, count=track.num_seen)

    def _hold(self, track: _Lasting, in_picture: Sequence[Box]) -> None:
        """Begins to hold an object, goes on with it or ends it."""
        ticks_unseen = self._tick - track.motion.last_tick
        if ticks_unseen == 1 and track.num_seen >= MIN_SEEN_TICKS:
            track.held = _held(track.box, track.motion, self._nearness_HW)
        is_replaced = any(self._replaces(box, track) for box in in_picture)
        most_ticks = min(self._persistence_ticks, max(BRIEF_TICKS, track.num_seen))
        if is_replaced or ticks_unseen > most_ticks:
            track.held = None

    def _replaces(self, box: Box, track: _Lasting) -> bool:
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


def _turn(track: _Lasting, turn_deg: float, fov_deg: float) -> None:
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
