"""What a detector makes of a simulated scene: boxes by geometry, with a detector's own faults.

Detections go through the same tracker, persistence and tokens as those of a real video.
Legend: T ticks, K boxes.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.concepts import CONCEPTS
from spatial_v2a.conditioning.boxes import Box, BoxTokenBuilder, frame_features
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.sounding import RESTING_S, depth_of_box
from spatial_v2a.conditioning.tracker import BoxTracker, TrackPersistence
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.features import FrameFeatures
from spatial_v2a.geometry import column, nearness
from spatial_v2a.timing import TIMING
from spatial_v2a.training.tracks.world import Thing, World

INDEX = {concept.name: index for index, concept in enumerate(CONCEPTS)}
CONFUSED = {
    "footsteps": ("running", "crowd"),
    "car": ("truck", "bus"),
    "truck": ("car", "bus"),
    "dog": ("cat", "sheep"),
    "horse": ("cow", "dog"),
    "bird": ("crow",),
}


@dataclass(frozen=True)
class DetectorFaults:
    """How often and how far a detector errs; fitted to NanoDet on a street camera (80 tracks).

    Attributes:
        jitter: deviation of centre, width and height, as shares of the box's width (first and
            third) and height.
        outlier_share, outlier_times: some errors are that many times as large.
        miss_share, gap: share of the looks that miss a thing, in gaps of so many on average.
        confusion_share: share of the looks that name another class.
        split_share: share of the looks that see a thing as two.
        score, score_spread: mean of the scores of one thing, from thing to thing, and its
            deviation from look to look.
        false_per_look: boxes where nothing is, mostly weak.
        scenery_per_clip: things that stand there and are seen in most looks.
        every_ticks: ticks between two looks, by chance.
        rests_seen_share: share of the clips in which what rests keeps its box.
        no_nearness_share: share of the clips without nearness.
    """

    jitter: tuple[float, float, float, float] = (0.012, 0.006, 0.022, 0.010)
    outlier_share: float = 0.08
    outlier_times: float = 4.0
    miss_share: float = 0.02
    gap: float = 2.2
    confusion_share: float = 0.025
    split_share: float = 0.01
    score: tuple[float, float] = (0.43, 0.8)
    score_spread: float = 0.065
    false_per_look: float = 0.4
    scenery_per_clip: float = 0.4
    every_ticks: tuple[int, ...] = (1, 2, 3)
    rests_seen_share: float = 0.15
    no_nearness_share: float = 0.2


NO_FAULTS = DetectorFaults(
    jitter=(0, 0, 0, 0),
    outlier_share=0,
    miss_share=0,
    confusion_share=0,
    split_share=0,
    score=(0.9, 0.9),
    score_spread=0,
    false_per_look=0,
    scenery_per_clip=0,
    every_ticks=(1,),
    rests_seen_share=0,
    no_nearness_share=0,
)


def true_boxes(world: World, thing: Thing) -> list[Box | None]:
    """The exact box of a thing in every tick, cut to the picture; None where it is not in it."""
    view = world.view
    azimuth_T = np.radians(world.azimuth_deg_T(thing))
    depth_T = thing.distance_T * np.cos(azimuth_T)
    half = view.half_height
    boxes: list[Box | None] = []
    for tick, depth in enumerate(depth_T):
        if depth < 0.3:
            boxes.append(None)
            continue
        h = thing.height_m / (2 * half * depth)
        w = h * thing.shape_T[tick] / view.aspect
        foot = view.horizon + (view.height_m - thing.place_T3[tick, 1]) / (2 * half * depth)
        cx = column(float(azimuth_T[tick]), view.fov_deg)
        boxes.append(_cut(cx, foot - h / 2, w, h, thing, tick))
    return boxes


def _cut(cx: float, cy: float, w: float, h: float, thing: Thing, tick: int) -> Box | None:
    low = np.clip([cx - w / 2, cy - h / 2], 0, 1)
    high = np.clip([cx + w / 2, cy + h / 2], 0, 1)
    size = high - low
    # What shows by less than a fifth of its width is not found.
    if size[0] < max(0.2 * min(w, 1.0), 0.004) or size[1] < 0.008:
        return None
    centre = (low + high) / 2
    return Box(
        thing.track_id, INDEX[thing.concept.name], *map(float, centre), *map(float, size), score=1.0
    )


def seen_features(
    world: World,
    boxes_of: list[list[Box | None]],
    config: PerceptionConfig,
    rng: np.random.Generator,
    faults: DetectorFaults,
    *,
    class_of: NDArray[np.int64],
) -> FrameFeatures:
    """Features [1, T] as perception hands them over: boxes only, patches and depth absent.

    Args:
        world: the scene.
        boxes_of: `true_boxes` of every thing.
        config: slots, persistence, and how sure a detection must be.
        rng: source of the faults.
        faults: how many.
        class_of: the model's class of every concept; below 0 where it has none.
    """
    num_ticks = len(world.view.heading_deg_T)
    is_silent = _silent(world, num_ticks, never=rng.random() < faults.rests_seen_share)
    looks = _looks(world, boxes_of, rng, faults)
    has_nearness = rng.random() >= faults.no_nearness_share
    tracker = BoxTracker(new_track_score=min(config.boxes.new_track_score, 0.4))
    persistence = TrackPersistence(persistence_s=config.persistence_s)
    builder = BoxTokenBuilder(max_boxes=config.max_boxes)
    turns_deg = np.diff(world.view.heading_deg_T, prepend=world.view.heading_deg_T[:1])
    view = {"fov_deg": world.view.fov_deg}
    tokens = []
    for tick in range(num_ticks):
        resting = [
            boxes[tick] for boxes, is_T in zip(boxes_of, is_silent, strict=True) if is_T[tick]
        ]
        heard, silenced = [], []
        for box in tracker.step(looks.get(tick)):
            known = int(class_of[box.class_index])
            if known < 0 or any(_is_same(box, other) for other in resting if other is not None):
                silenced.append(box)
                continue
            concept = CONCEPTS[box.class_index]
            far_m = depth_of_box(box, concept, aspect=world.view.aspect, **view)
            near = float(nearness(far_m)) if far_m is not None and has_nearness else 0.0
            heard.append(replace(box, class_index=known, nearness=near))
        turn_deg = float(turns_deg[tick])
        shown = persistence.step(heard, turn_deg=turn_deg, silenced=silenced, **view)
        tokens.append(builder.step(shown, **view))
    return frame_features(config, tokens=tokens, num_ticks=num_ticks)


def _is_same(box: Box, other: Box) -> bool:
    """Whether a tracked box is that of a thing: each has its middle in the middle of the other."""
    dx, dy = abs(box.cx - other.cx), abs(box.cy - other.cy)
    return dx < 0.4 * min(box.w, other.w) and dy < 0.4 * min(box.h, other.h)


def _silent(world: World, num_ticks: int, *, never: bool) -> list[NDArray]:
    """Where a thing has rested for a while: its box does not reach the model (`Sounding`)."""
    silent, ticks = [], np.arange(num_ticks)
    for thing in world.things:
        last = np.maximum.accumulate(np.where(thing.sounds_T, ticks, -num_ticks))
        silent.append((ticks - last > RESTING_S * TIMING.tick_hz) & (not never))
    return silent


def _looks(
    world: World,
    boxes_of: list[list[Box | None]],
    rng: np.random.Generator,
    faults: DetectorFaults,
) -> dict[int, Detections]:
    """What the detector says at each of its looks, by tick."""
    num_ticks = len(world.view.heading_deg_T)
    every = int(rng.choice(faults.every_ticks))
    sureness = [rng.uniform(*faults.score) for _ in world.things]
    is_missed = [False] * len(world.things)
    misses = faults.miss_share / (faults.gap * (1 - faults.miss_share))
    scenery = [_anywhere(rng) for _ in range(rng.poisson(faults.scenery_per_clip))]
    looks = {}
    for tick in range(int(rng.integers(every)), num_ticks, every):
        rows: list[tuple[NDArray, float, int]] = []
        for k, thing in enumerate(world.things):
            box = boxes_of[k][tick]
            is_missed[k] = rng.random() < (1 - 1 / faults.gap if is_missed[k] else misses)
            if box is None or is_missed[k]:
                continue
            label = INDEX[thing.concept.name]
            if rng.random() < faults.confusion_share:
                others = CONFUSED.get(thing.concept.name)
                label = (
                    INDEX[str(rng.choice(others))] if others else int(rng.integers(len(CONCEPTS)))
                )
            score = float(np.clip(sureness[k] + rng.normal(0, faults.score_spread), 0.2, 1.0))
            rows += [(part, score, label) for part in _parts(box, rng, faults)]
        for corners, label in scenery:
            if rng.random() < 0.8:
                moved = corners + rng.normal(0, 0.003, 4)
                rows.append((moved, float(rng.uniform(0.25, 0.5)), label))
        for _ in range(rng.poisson(faults.false_per_look)):
            corners, label = _anywhere(rng)
            rows.append((corners, float(rng.uniform(0.25, 0.42)), label))
        looks[tick] = Detections(
            np.clip(np.array([row[0] for row in rows], np.float32).reshape(-1, 4), 0, 1),
            np.array([row[1] for row in rows], np.float32),
            np.array([row[2] for row in rows], np.int64),
        )
    return looks


def _parts(box: Box, rng: np.random.Generator, faults: DetectorFaults) -> list[NDArray]:
    """The corners [4] of a box as a look finds them, in one part or, rarely, in two."""
    times = faults.outlier_times if rng.random() < faults.outlier_share else 1.0
    error = rng.normal(0, 1, 4) * np.array(faults.jitter) * times
    cx, cy = box.cx + error[0] * box.w, box.cy + error[1] * box.h
    w, h = box.w * np.exp(error[2]), box.h * np.exp(error[3])
    corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    if rng.random() >= faults.split_share:
        return [corners]
    middle = cy + rng.uniform(-0.2, 0.2) * h
    upper, lower = corners.copy(), corners.copy()
    upper[3], lower[1] = middle, middle
    return [upper, lower]


def _anywhere(rng: np.random.Generator) -> tuple[NDArray, int]:
    """Corners [4] and a class by chance; scenery does not sound at rest, so those are left out."""
    w, h = np.exp(rng.uniform(np.log(0.02), np.log(0.25), 2))
    x, y = rng.uniform(0, 1 - w), rng.uniform(0.1, 1 - h) if h < 0.9 else 0.0
    label = int(rng.integers(len(CONCEPTS)))
    return np.array([x, y, x + w, y + h]), label
