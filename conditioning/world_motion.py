"""How fast a thing moves in its world: what moves in its box, the camera's own motion taken out.

The picture that was shown before is laid over the new one by the shift, turn and zoom that most of
its points agree on (Lucas and Kanade 1981; RANSAC, Fischler and Bolles 1981). What is then left
of the change in brightness, over how steep the brightness is, is the speed along it (normal flow,
Horn and Schunck 1981). Pictures that are shown twice, as in a film of 10 a second, say nothing.
Legend: H W rows and columns of the small picture.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.conditioning.box_fields import Box

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
