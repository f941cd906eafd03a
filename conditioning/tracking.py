"""Follows detected boxes from tick to tick: one light tracker per stream, new objects at once.

Two rounds of assignment, strong boxes first, weak ones only to extend tracks (after ByteTrack,
Zhang et al. 2022, section 3), on the overlap of boxes moved by their own smoothed velocity.
Legend: K boxes or tracks, N detections; boxes are cx, cy, w, h as fractions of the picture.
"""

from dataclasses import dataclass

import lap
import numpy as np
from numpy.typing import NDArray

from spatial_v2a.conditioning.box_fields import Box
from spatial_v2a.conditioning.detections import Detections, Region
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
        for k, column in zip(waiting, match_K, strict=True):
            if column >= 0:
                n = int(candidates[column])
                label, score = int(found.class_K[n]), float(found.score_K[n])
                _update(self._tracks[k], boxes_N4[n], label, score)
                if score >= self.new_track_score:
                    self._tracks[k].num_weak = 0
        left_tracks = [k for k, column in zip(waiting, match_K, strict=True) if column < 0]
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
