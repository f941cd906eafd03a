"""Which of the things that a general detector sees are heard: what moves, and what sounds at rest.

A parked car has a box and no sound; a dial keeps its place on the screen while the world moves
behind it; a rider makes no steps. All else that a detector names goes on as a box of the
generator's own class, with the distance that its size tells.

What moves: the picture before is laid over the new one by the shift, turn and zoom that most of its
points agree on (Lucas and Kanade 1981; RANSAC, Fischler and Bolles 1981). What is then left of the
change in brightness, over how steep the brightness is, is the speed along it (normal flow, Horn and
Schunck 1981). Pictures that are shown twice, as in a film of 10 a second, say nothing.
Legend: H W rows and columns of the small picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.concepts import CONCEPTS, Concept, SoundMap, sound_index
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.geometry import nearness
from spatial_v2a.timing import TIMING

WIDTH = 192
# Mean difference in grey levels below which it is the same picture again.
SAME_PICTURE = 0.15
MAX_POINTS, MIN_POINTS = 150, 12
POINT_QUALITY, POINT_DISTANCE_PX = 0.01, 5
# Points that miss the common motion by more than this are not of the background.
MAX_MISS_PX = 1.0
# A codec's noise: differences as small as this are none.
NOISE_LEVELS = 3.0
MIN_PIXELS = 12


@dataclass(frozen=True)
class Change:
    """What changed from one picture to the next.

    Attributes:
        camera_23: where the background's points went, [x, y, 1] to [x, y], in small pixels.
        moved_HW: change of brightness that the camera does not explain, grey levels.
        slope_HW: how steep the brightness is, grey levels a pixel.
        ticks: ticks between the two pictures.
    """

    camera_23: NDArray
    moved_HW: NDArray
    slope_HW: NDArray
    ticks: int

    def speed(self, box: Box) -> float:
        """Speed of what is in a box against the background, small pixels a tick."""
        rows, columns = _inside(box, self.moved_HW.shape)
        moved, slope = self.moved_HW[rows, columns], self.slope_HW[rows, columns]
        if moved.size < MIN_PIXELS:
            return 0.0
        return float((moved * slope).sum() / (np.square(slope).sum() + moved.size)) / self.ticks

    @property
    def background_speed(self) -> float:
        """The same of the whole picture, by its median over a grid of cells."""
        height, width = self.moved_HW.shape
        cells = [
            self.speed(Box(0, 0, (x + 0.5) / 8, (y + 0.5) / 6, 1 / 8, 1 / 6))
            for y in range(6)
            for x in range(8)
        ]
        return float(np.median(cells))

    def carried(self, x: float, y: float) -> tuple[float, float]:
        """Where the camera's motion carries a point of the picture, as fractions of it."""
        height, width = self.moved_HW.shape
        moved = self.camera_23 @ np.array([x * width, y * height, 1.0])
        return float(moved[0] / width), float(moved[1] / height)


class WorldMotion:
    """Per-stream memory of the last picture; call once per tick, in order."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the last picture: up to the next one nothing moves."""
        self._last_HW: NDArray | None = None
        self._ticks = 0

    def step(self, frame_HWC: Tensor | NDArray) -> Change | None:
        """What changed since the picture before; None where it is the same one, or the first.

        Args:
            frame_HWC: uint8 RGB, any size.
        """
        now_HW = _small_grey(np.asarray(frame_HWC))
        last_HW, self._ticks = self._last_HW, self._ticks + 1
        if last_HW is None or last_HW.shape != now_HW.shape:
            self._last_HW, self._ticks = now_HW, 0
            return None
        if cv2.absdiff(last_HW, now_HW).mean() < SAME_PICTURE:
            return None
        camera_23 = _common_motion(last_HW, now_HW)
        laid_HW = cv2.warpAffine(
            last_HW, camera_23, now_HW.shape[::-1], borderMode=cv2.BORDER_REPLICATE
        )
        difference_HW = cv2.absdiff(laid_HW, now_HW).astype(np.float32)
        smooth_HW = cv2.GaussianBlur(now_HW, (3, 3), 0).astype(np.float32)
        slope_HW = np.hypot(*np.gradient(smooth_HW))
        moved_HW = np.maximum(difference_HW - NOISE_LEVELS, 0.0)
        change = Change(camera_23, moved_HW, slope_HW, max(1, self._ticks))
        self._last_HW, self._ticks = now_HW, 0
        return change


def _small_grey(frame_HWC: NDArray) -> NDArray:
    height, width = frame_HWC.shape[:2]
    size = (WIDTH, max(8, round(height * WIDTH / width)))
    small_HWC = cv2.resize(np.ascontiguousarray(frame_HWC), size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small_HWC, cv2.COLOR_RGB2GRAY)


def _common_motion(last_HW: NDArray, now_HW: NDArray) -> NDArray:
    """Shift, turn and zoom of most points, [2, 3]; none where too few agree."""
    still_23 = np.eye(2, 3)
    points = cv2.goodFeaturesToTrack(last_HW, MAX_POINTS, POINT_QUALITY, POINT_DISTANCE_PX)
    if points is None or len(points) < MIN_POINTS:
        return still_23
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        last_HW, now_HW, points, None, winSize=(11, 11), maxLevel=3
    )
    kept = found[:, 0] == 1
    if kept.sum() < MIN_POINTS:
        return still_23
    camera_23, agree = cv2.estimateAffinePartial2D(
        points[kept], moved[kept], method=cv2.RANSAC, ransacReprojThreshold=MAX_MISS_PX
    )
    if camera_23 is None or agree.sum() < max(MIN_POINTS, 0.3 * kept.sum()):
        return still_23
    return camera_23


def _inside(box: Box, shape: tuple[int, ...]) -> tuple[slice, slice]:
    height, width = shape
    top, bottom = (box.cy - box.h / 2) * height, (box.cy + box.h / 2) * height
    left, right = (box.cx - box.w / 2) * width, (box.cx + box.w / 2) * width
    return (
        slice(max(0, int(top)), min(height, int(np.ceil(bottom)))),
        slice(max(0, int(left)), min(width, int(np.ceil(right)))),
    )


# Speed of what is inside a box, in heights of the box a second: a thing sets out above the first
# and has come to rest below the second. Parked cars have 0.03 at most, walkers 0.1 to 0.9.
SETS_OUT, COMES_TO_REST = 0.12, 0.05
# A moving camera's parallax is not taken out: a thing must move more than the picture around it.
BACKGROUND_WEIGHT = 1.5
SMOOTHING_S = 0.3
# What moved is heard on for so long after it came to rest, as a walker's feet do between steps.
RESTING_S = 0.7
# A picture that stays the same for longer than this is no film of few pictures: nothing moves.
STILL_S = 0.35
# Part of the screen and not of the world: the world goes by so fast, in picture widths a second,
# for so long, and the box stays where it was, by so much of the picture; at its border by more, for
# a weapon in a player's hand bobs. A runner whom the camera follows is in the middle, less still.
WORLD_GOES_BY, GLUED_S = 0.05, 1.5
GLUED_PLACE, GLUED_PLACE_AT_BORDER, BORDER = 0.006, 0.06, 0.03
# A place of the screen is forgotten when the world went by for so long without a box there.
FORGET_SPOT_S = 10.0
# Level falls by 6 dB a doubling of the distance. The generator was trained on a game in which it
# falls by 1; the rest is added here. Nothing is louder than the generator makes it.
REFERENCE_M = 4.0
DB_A_DOUBLING = 5.0
MAX_LOSS_DB = 24.0
# Whose middle lower half lies in a thing that is ridden rides it.
RIDDEN = frozenset({"bicycle", "motorcycle", "skateboard", "scooter", "horse"})
RIDERS = frozenset({"footsteps", "running"})
_INDEX = {concept.name: index for index, concept in enumerate(CONCEPTS)}


@dataclass
class _Thing:
    """What is known of a tracked thing.

    Attributes:
        speed: smoothed, in heights of its box a second.
        is_moving: whether it has set out and not come to rest.
        rest_ticks: for how long it has been at rest since it moved.
        last_tick: when it was seen last.
    """

    speed: float = 0.0
    is_moving: bool = False
    rest_ticks: int = 0
    last_tick: int = 0


@dataclass
class _Spot:
    """A place on the screen where boxes were while the world went by, under whatever id.

    Attributes:
        box: the first of them; it stays, or a place would follow what moves slowly.
        glued_ticks: for how long.
        empty_ticks: for how long there has been none since.
    """

    box: Box
    glued_ticks: int = 0
    empty_ticks: int = 0

    @property
    def is_screen(self) -> bool:
        """Whether what is here is part of the screen."""
        return self.glued_ticks >= GLUED_S * TIMING.tick_hz

    def is_of(self, box: Box) -> bool:
        """Whether a box lies here."""
        middle_x, middle_y = (box.cx + self.box.cx) / 2, (box.cy + self.box.cy) / 2
        reach_x, reach_y = box.w / 2 + BORDER, box.h / 2 + BORDER
        at_border = (
            min(middle_x - reach_x, middle_y - reach_y) < 0
            or max(middle_x + reach_x, middle_y + reach_y) > 1
        )
        limit = GLUED_PLACE_AT_BORDER if at_border else GLUED_PLACE
        return math.hypot(box.cx - self.box.cx, box.cy - self.box.cy) < limit

    def is_around(self, box: Box) -> bool:
        """Whether a box covers the middle of this place."""
        is_beside = abs(box.cx - self.box.cx) < box.w / 2
        return is_beside and abs(box.cy - self.box.cy) < box.h / 2


@dataclass(frozen=True)
class HeardAndSilent:
    """Boxes of one tick: those that sound, with the generator's classes, and those that do not."""

    heard: list[Box] = field(default_factory=list)
    silent: list[Box] = field(default_factory=list)


def as_concepts(found: Detections, sounds: SoundMap) -> Detections:
    """Detections whose classes are indices in CONCEPTS; what is silent by its name is left out.

    Args:
        found: with the detector's own classes.
        sounds: what those sound like.
    """
    concepts = [sounds.concepts[int(label)] for label in found.class_K]
    keep = [k for k, each in enumerate(concepts) if each is not None]
    return replace(
        found,
        corners_K4=found.corners_K4[keep],
        score_K=found.score_K[keep],
        class_K=found.class_K[keep] * 0 + [_INDEX[concepts[k].name] for k in keep],
    )


class Sounding:
    """Per-stream memory of the things in view; `look` and `step` once per tick, in order.

    Args:
        knows_concepts: whether the generator's classes are the concepts of the bank. Such a one was
            trained on their level at any distance; one of the Stage's classes was not.
    """

    def __init__(self, *, knows_concepts: bool = False) -> None:
        self._knows_concepts = knows_concepts
        self._motion = WorldMotion()
        self.reset()

    def reset(self) -> None:
        """Forgets every thing and the last picture."""
        self._motion.reset()
        self._things: dict[int, _Thing] = {}
        self._spots: list[_Spot] = []
        self._change: Change | None = None
        self._still_ticks = 0
        self._aspect = 4 / 3
        self._tick = 0

    def look(self, frame_HWC: Tensor | NDArray) -> None:
        """Sees what changed in the tick's picture, uint8 RGB of any size."""
        self._change = self._motion.step(frame_HWC)
        self._still_ticks = self._still_ticks + 1 if self._change is None else 0
        self._aspect = frame_HWC.shape[1] / frame_HWC.shape[0]

    def step(self, boxes: Sequence[Box], *, fov_deg: float) -> HeardAndSilent:
        """Tells the tick's boxes apart.

        Args:
            boxes: tracked, with indices in CONCEPTS as their classes.
            fov_deg: horizontal field of view, degrees.

        Returns:
            Those that sound have the generator's classes, and nearness and gain, as far as their
            usual height tells the distance.
        """
        result = HeardAndSilent()
        ridden = [box for box in boxes if CONCEPTS[box.class_index].name in RIDDEN]
        background = 0.0 if self._change is None else self._change.background_speed
        if self._change is not None:
            self._note_spots(boxes, self._change)
        for box in boxes:
            concept = CONCEPTS[box.class_index]
            thing = self._things.setdefault(box.track_id, _Thing())
            thing.last_tick = self._tick
            if self._change is not None:
                self._follow(thing, box, self._change, background)
            elif self._still_ticks > STILL_S * TIMING.tick_hz:
                _rest(thing, ticks=1)
            is_at_rest = not (thing.is_moving or concept.sounds_at_rest)
            index = box.class_index if self._knows_concepts else sound_index(concept)
            is_screen = any(spot.is_screen and spot.is_of(box) for spot in self._spots)
            if index is None or is_at_rest or is_screen or _is_rider(box, concept, ridden):
                result.silent.append(box)
                continue
            depth_m = depth_of_box(box, concept, fov_deg=fov_deg, aspect=self._aspect)
            near = None if depth_m is None else float(nearness(depth_m))
            is_levelled = depth_m is None or self._knows_concepts
            gain_db = 0.0 if is_levelled else _gain_db(depth_m, concept)
            result.heard.append(replace(box, class_index=index, nearness=near, gain_db=gain_db))
        self._tick += 1
        oldest = self._tick - 2 * TIMING.tick_hz
        self._things = {i: t for i, t in self._things.items() if t.last_tick >= oldest}
        return result

    def _follow(self, thing: _Thing, box: Box, change: Change, background: float) -> None:
        """Takes in how a thing moved from the last picture to this one."""
        height_px = max(box.h, 1e-3) * change.moved_HW.shape[0]
        extra = max(0.0, change.speed(box) - BACKGROUND_WEIGHT * background)
        speed = extra * TIMING.tick_hz / height_px
        weight = min(1.0, change.ticks / (SMOOTHING_S * TIMING.tick_hz))
        thing.speed += weight * (speed - thing.speed)
        if thing.speed >= SETS_OUT:
            thing.is_moving, thing.rest_ticks = True, 0
        elif thing.speed < COMES_TO_REST:
            _rest(thing, ticks=change.ticks)

    def _note_spots(self, boxes: Sequence[Box], change: Change) -> None:
        """Takes in which places of the screen keep their boxes while the world goes by."""
        for box in boxes:
            x, y = change.carried(box.cx, box.cy)
            speed = math.hypot(x - box.cx, y - box.cy) * TIMING.tick_hz / change.ticks
            if speed < WORLD_GOES_BY:
                continue
            spot = next((spot for spot in self._spots if spot.is_of(box)), None)
            for other in self._spots:
                # What lies around a place and not in it has moved on the screen.
                if other is not spot and other.is_around(box):
                    other.glued_ticks = max(0, other.glued_ticks - 2 * change.ticks)
            if spot is None:
                spot = _Spot(box)
                self._spots.append(spot)
            spot.empty_ticks = 0
            spot.glued_ticks += change.ticks
        for spot in self._spots:
            spot.empty_ticks += change.ticks
        limit = FORGET_SPOT_S * TIMING.tick_hz
        self._spots = [spot for spot in self._spots if spot.empty_ticks < limit]


def _rest(thing: _Thing, *, ticks: int) -> None:
    """Takes in that a thing has not moved for so many ticks."""
    thing.rest_ticks += ticks
    thing.is_moving &= thing.rest_ticks < RESTING_S * TIMING.tick_hz


def _is_rider(box: Box, concept: Concept, ridden: Sequence[Box]) -> bool:
    if concept.name not in RIDERS:
        return False
    x, y = box.cx, box.cy + box.h / 4
    return any(
        abs(x - other.cx) <= other.w / 2 and abs(y - other.cy) <= other.h / 2 for other in ridden
    )


def depth_of_box(box: Box, concept: Concept, *, fov_deg: float, aspect: float) -> float | None:
    """Distance of a thing of its usual height, from the height of its box; None without one."""
    if concept.height_m == 0:
        return None
    half_height = math.tan(math.radians(fov_deg) / 2) / aspect
    return concept.height_m / (2 * half_height * max(box.h, 1e-3))


def _gain_db(depth_m: float, concept: Concept) -> float:
    """What distance and kind do to a thing's level, dB, at most 0."""
    loss_db = DB_A_DOUBLING * math.log2(depth_m / REFERENCE_M)
    return -min(max(loss_db - concept.level_db, 0.0), MAX_LOSS_DB)
