"""Turns the tracked boxes of successive ticks into box tokens: velocity, age, nearness, bearing.

Given and detected boxes go through this one class, so that both make the same tokens.
Legend: K box slots, F fields (BOX_FIELDS), T ticks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spatial_v2a.config import PerceptionConfig
from spatial_v2a.features import BOX_FIELDS, MAX_AGE_S, FrameFeatures, empty_features
from spatial_v2a.geometry import azimuth_rad, nearness_in_boxes
from spatial_v2a.timing import TIMING

VELOCITY_SMOOTHING_S = 0.1
FORGET_AFTER_S = 1.0


@dataclass(frozen=True)
class Box:
    """One box of one tick.

    Attributes:
        track_id: same number as long as it is the same object.
        class_index: index in the configured vocabulary.
        cx, cy, w, h: fractions of the picture.
        score: confidence 0..1.
        nearness: 0..1, or None to read it from the depth grid.
        is_persisted: the object is not seen: this is where it was (`conditioning/tracker.py`).
        gain_db: what its distance and kind do to its level, against the generator's own; it is
            applied to the sound, the generator does not see it.
    """

    track_id: int
    class_index: int
    cx: float
    cy: float
    w: float
    h: float
    score: float = 1.0
    nearness: float | None = None
    is_persisted: bool = False
    gain_db: float = 0.0


@dataclass
class Motion:
    """Where an object was seen last, and its smoothed velocity.

    Attributes:
        last_tick: when that was.
        cx, cy: centre of its box, fractions of the picture.
        vx, vy: change of them per second.
        num_steps: times it was seen after the first.
    """

    last_tick: int
    cx: float
    cy: float
    vx: float = 0.0
    vy: float = 0.0
    num_steps: int = 0

    def follow(self, box: Box, tick: int) -> None:
        """Takes in the object's box in a later tick."""
        elapsed_s = max(tick - self.last_tick, 1) / TIMING.tick_hz
        # The first difference is taken whole, later ones by an exponential mean over the past.
        weight = min(1.0, elapsed_s / VELOCITY_SMOOTHING_S) if self.num_steps else 1.0
        self.vx += weight * ((box.cx - self.cx) / elapsed_s - self.vx)
        self.vy += weight * ((box.cy - self.cy) / elapsed_s - self.vy)
        self.cx, self.cy, self.last_tick = box.cx, box.cy, tick
        self.num_steps += 1


@dataclass
class _Track:
    first_tick: int
    motion: Motion


@dataclass
class BoxTokens:
    """Box tokens of one tick: fields [K, F] float32, classes [K] int64, mask [K] bool."""

    fields_KF: NDArray
    class_K: NDArray
    mask_K: NDArray


class BoxTokenBuilder:
    """Per-stream memory that adds motion and age to boxes; call once per tick, in order."""

    def __init__(self, *, max_boxes: int) -> None:
        self.max_boxes = max_boxes
        self.reset()

    def reset(self) -> None:
        """Forgets every track."""
        self._tracks: dict[int, _Track] = {}
        self._tick = 0

    def step(
        self, boxes: list[Box], *, fov_deg: float, nearness_HW: NDArray | None = None
    ) -> BoxTokens:
        """Tokens of this tick's boxes; when there are more than `max_boxes`, see `slots_of`.

        Args:
            boxes: boxes of this tick with track ids. A held one keeps the motion that its object
                had when it was seen last.
            fov_deg: horizontal field of view in degrees.
            nearness_HW: depth grid that fills a missing nearness; without it such boxes get 0.
        """
        tokens = BoxTokens(
            np.zeros((self.max_boxes, len(BOX_FIELDS)), np.float32),
            np.zeros(self.max_boxes, np.int64),
            np.zeros(self.max_boxes, bool),
        )
        tracks = [self._follow(box) for box in boxes]
        for slot, i in enumerate(slots_of(boxes, self.max_boxes)):
            box, track = boxes[i], tracks[i]
            near = box.nearness
            if near is None:
                corners = np.array([[box.cx, box.cy, box.w, box.h]])
                near = 0.0 if nearness_HW is None else nearness_in_boxes(nearness_HW, corners)[0]
            age_s = min((self._tick - track.first_tick) / TIMING.tick_hz, MAX_AGE_S)
            bearing = azimuth_rad(box.cx, fov_deg)
            rest = (track.motion.vx, track.motion.vy, box.score, near, bearing, age_s)
            tokens.fields_KF[slot] = (box.cx, box.cy, box.w, box.h, *rest)
            tokens.class_K[slot] = box.class_index
            tokens.mask_K[slot] = True
        self._tick += 1
        self._forget_old({box.track_id for box in boxes})
        return tokens

    def _follow(self, box: Box) -> _Track:
        track = self._tracks.get(box.track_id)
        if track is None:
            track = _Track(self._tick, Motion(self._tick, box.cx, box.cy))
            self._tracks[box.track_id] = track
        elif not box.is_persisted:
            track.motion.follow(box, self._tick)
        return track

    def _forget_old(self, present_ids: set[int]) -> None:
        """Forgets what was not seen for a second, unless it is held."""
        limit = self._tick - FORGET_AFTER_S * TIMING.tick_hz
        self._tracks = {
            i: t for i, t in self._tracks.items() if i in present_ids or t.motion.last_tick >= limit
        }


def slots_of(boxes: Sequence[Box], max_boxes: int) -> list[int]:
    """Which box stands in each slot, as its place in `boxes`: those chosen, in their order.

    Seen boxes come before held ones, large before small.
    """
    ranked = sorted(
        range(len(boxes)), key=lambda i: (boxes[i].is_persisted, -boxes[i].w * boxes[i].h)
    )
    return sorted(ranked[:max_boxes])


def frame_features(
    config: PerceptionConfig,
    *,
    tokens: list[BoxTokens] | None = None,
    nearness_THW: NDArray | None = None,
    num_ticks: int,
) -> FrameFeatures:
    """Features [1, T] of one stream from box tokens and a nearness grid; what is None is absent."""
    shapes = config.shapes
    features = empty_features(
        1,
        num_ticks,
        num_patches=shapes.num_patches,
        dino_dim=shapes.dino_dim,
        depth_grid=shapes.depth_grid,
        max_boxes=shapes.max_boxes,
    )
    present = torch.ones(1, num_ticks, dtype=torch.bool)
    if tokens is not None:
        features = replace(
            features,
            boxes_BTKF=torch.from_numpy(np.stack([t.fields_KF for t in tokens])[None]),
            class_BTK=torch.from_numpy(np.stack([t.class_K for t in tokens])[None]),
            box_mask_BTK=torch.from_numpy(np.stack([t.mask_K for t in tokens])[None]),
            has_boxes_BT=present,
        )
    if nearness_THW is not None:
        depth = torch.from_numpy(np.ascontiguousarray(nearness_THW, dtype=np.float32)[None])
        features = replace(features, depth_BTHW=depth, has_depth_BT=present)
    return features
