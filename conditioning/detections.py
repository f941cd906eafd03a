"""What every detector is and gives, and how its pictures and boxes are fitted to one another.

Zoomed detection looks at a part of the picture from nearer: half of its width and height at twice
the size, left, middle and right in turns. What is small stands near the horizon, so all of them lie
a little below the middle of the picture.
Legend: B pictures, N candidates, K boxes; corners are x1, y1, x2, y2 as fractions of the picture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from spatial_v2a.conditioning.frozen import FrozenEncoder, resize_frames
from spatial_v2a.config import ZOOM_MAGNIFICATION, BoxSettings

PAD_GREY = 114
# Input sizes are multiples of the coarsest stride.
SIZE_STEP = 32
MAX_CANDIDATES = 64


@dataclass(frozen=True)
class Region:
    """A part of a picture; the sides are fractions of its width and height."""

    x1: float
    y1: float
    x2: float
    y2: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point of the picture lies in it."""
        return self.x1 <= x <= self.x2 and self.y1 <= y <= self.y2

    def to_picture(self, corners_K4: NDArray) -> NDArray:
        """Corners in fractions of the region as fractions of the picture."""
        origin_4 = np.array([self.x1, self.y1] * 2, dtype=corners_K4.dtype)
        extent_4 = np.array([self.x2 - self.x1, self.y2 - self.y1] * 2, dtype=corners_K4.dtype)
        return origin_4 + extent_4 * corners_K4


@dataclass(frozen=True)
class Detections:
    """Boxes of one picture, strongest first.

    Attributes:
        corners_K4: x1, y1, x2, y2 as fractions of the picture, float32.
        score_K: confidence 0..1.
        class_K: class index in the vocabulary, int64.
        zoomed_region: the part that was looked at from nearer as well, or None.
    """

    corners_K4: NDArray
    score_K: NDArray
    class_K: NDArray
    zoomed_region: Region | None = None


def letterbox(frames_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Scales pictures to fit, keeping their aspect, and pads to uint8 [B, 3, height, width]."""
    scale = min(height / frames_BHWC.shape[1], width / frames_BHWC.shape[2])
    inner_height = min(height, max(1, round(frames_BHWC.shape[1] * scale)))
    inner_width = min(width, max(1, round(frames_BHWC.shape[2] * scale)))
    x_BCHW = resize_frames(frames_BHWC, inner_height, inner_width)
    pad_y, pad_x = height - inner_height, width - inner_width
    if pad_x or pad_y:
        sides = (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2)
        x_BCHW = functional.pad(x_BCHW, sides, value=PAD_GREY)
    return x_BCHW


def select_boxes(y_BCN: Tensor, settings: BoxSettings, aspect: float) -> list[Detections]:
    """Thresholds, suppresses overlaps and undoes the letterbox.

    Args:
        y_BCN: [B, 4 + classes, N]: centre and size in input pixels, class scores.
        settings: input size and thresholds.
        aspect: width / height of the original pictures.
    """
    height, width = settings.image_height, settings.image_width
    inner_width, inner_height = min(width, height * aspect), min(height, width / aspect)
    origin = torch.tensor([(width - inner_width) / 2, (height - inner_height) / 2])
    extent = torch.tensor([inner_width, inner_height])
    results = []
    score_BN, class_BN = y_BCN[:, 4:].max(dim=1)
    for y_CN, score_N, class_N in zip(y_BCN.cpu(), score_BN.cpu(), class_BN.cpu(), strict=True):
        keep_K = (score_N > settings.score_threshold).nonzero()[:, 0]
        keep_K = keep_K[score_N[keep_K].argsort(descending=True)[:MAX_CANDIDATES]]
        centre_K2, size_K2 = y_CN[:2, keep_K].T, y_CN[2:4, keep_K].T
        corners_K4 = torch.cat([centre_K2 - size_K2 / 2, centre_K2 + size_K2 / 2], dim=1)
        best = suppress_overlaps(corners_K4, max_iou=settings.nms_iou)
        keep_K, corners_K4 = keep_K[best], corners_K4[best]
        corners_K4 = ((corners_K4 - origin.repeat(2)) / extent.repeat(2)).clamp(0.0, 1.0)
        arrays = (corners_K4.numpy(), score_N[keep_K].numpy(), class_N[keep_K].numpy())
        results.append(Detections(*arrays))
    return results


def suppress_overlaps(corners_K4: Tensor, *, max_iou: float) -> list[int]:
    """Which boxes stay where the stronger of two that overlap suppresses the other.

    As torchvision's nms, whose import takes as long as that of torch.

    Args:
        corners_K4: x1, y1, x2, y2, strongest first.
        max_iou: intersection over union above which two boxes are one.
    """
    area_K = (corners_K4[:, 2:] - corners_K4[:, :2]).prod(dim=1)
    first_KK2 = torch.maximum(corners_K4[:, None, :2], corners_K4[None, :, :2])
    last_KK2 = torch.minimum(corners_K4[:, None, 2:], corners_K4[None, :, 2:])
    common_KK = (last_KK2 - first_KK2).clamp_min(0.0).prod(dim=2)
    overlaps_KK = (common_KK / (area_K[:, None] + area_K - common_KK) > max_iou).tolist()
    kept: list[int] = []
    for candidate, overlaps_K in enumerate(overlaps_KK):
        if not any(overlaps_K[stronger] for stronger in kept):
            kept.append(candidate)
    return kept


class BoxDetector(FrozenEncoder):
    """A frozen detector; a subclass sets `settings`, `names` and `model`.

    Its `forward` takes pictures in 0..1 and gives centres and sizes in input pixels and class
    scores, [B, 4 + classes, N].

    Attributes:
        settings: input size and thresholds.
        names: its classes; the position is the class index of its detections.
    """

    settings: BoxSettings
    names: tuple[str, ...]

    def example(self) -> Tensor:
        """One black picture."""
        return torch.zeros(1, 3, self.settings.image_height, self.settings.image_width)

    @torch.inference_mode()
    def detect(self, frames_BHWC: Tensor) -> list[Detections]:
        """Boxes of each uint8 RGB picture [B, H, W, 3]."""
        height, width = self.settings.image_height, self.settings.image_width
        x_BCHW = letterbox(frames_BHWC, height, width).to(self.device).float() / 255.0
        y_BCN = self.run(x_BCHW)
        return select_boxes(y_BCN, self.settings, frames_BHWC.shape[2] / frames_BHWC.shape[1])


class FullyConvolutionalDetector(BoxDetector):
    """A detector whose input takes the shape of the pictures, so that little of it is padding.

    The larger side of its settings is the longer side of every input. What is compiled is compiled
    for each shape when its first picture comes.
    """

    # Until `optimize`.
    _is_optimized = False

    def optimize(self) -> None:
        self._is_optimized = True
        self._compiled_of: dict[tuple[int, int], Callable[[Tensor], Tensor] | None] = {}

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        is_optimized, self._is_optimized = self._is_optimized, False
        try:
            with super().uncompiled():
                yield
        finally:
            self._is_optimized = is_optimized

    def detect(self, frames_BHWC: Tensor) -> list[Detections]:
        self._take_shape(*frames_BHWC.shape[1:3])
        return super().detect(frames_BHWC)

    def _take_shape(self, height: int, width: int) -> None:
        longer_side = max(self.settings.image_height, self.settings.image_width)
        size = input_size(height, width, longer_side=longer_side)
        if size != (self.settings.image_height, self.settings.image_width):
            update = {"image_height": size[0], "image_width": size[1]}
            self.settings = self.settings.model_copy(update=update)
        if not self._is_optimized:
            return
        if size not in self._compiled_of:
            super().optimize()
            self._compiled_of[size] = self._compiled
        self._compiled = self._compiled_of[size]


def input_size(height: int, width: int, *, longer_side: int) -> tuple[int, int]:
    """Rows and columns, in pixels, of an input for pictures scaled to `longer_side`."""
    scale = longer_side / max(height, width)
    rows, columns = (
        max(1, ceil(round(scale * side) / SIZE_STEP)) * SIZE_STEP for side in (height, width)
    )
    return rows, columns


# Left, middle, right: objects at the seam of two of them are whole in the third.
LEFT_EDGES = (0.0, 0.25, 0.5)
# Of all boxes below a fifth of the picture's height this band holds most (five of six on Stage).
TOP_EDGE = 0.3
# A box that reaches an inner edge is cut off there: what it belongs to is larger.
CUT_MARGIN = 0.015
# What fills more of the part than this is seen better from where the whole picture is.
MAX_SIDE = 0.6
# Two boxes of one object overlap by so much of their union.
SAME_OVERLAP = 0.4
# A box inside a larger one by so much of its area is a piece of that ...
PIECE_SHARE = 0.6
# ... if the larger one is at least as sure as this.
WHOLE_SCORE = 0.3


def region_of(look: int, *, height: int, width: int) -> Region:
    """Which part of a picture is looked at from nearer, on pixel borders.

    Args:
        look: number of the picture among those the detector sees.
        height, width: of the picture, pixels.
    """
    rows, columns = _part_size(height, width)
    left = min(round(LEFT_EDGES[look % len(LEFT_EDGES)] * width), width - columns)
    top = min(round(TOP_EDGE * height), height - rows)
    return Region(left / width, top / height, (left + columns) / width, (top + rows) / height)


def cut_out(frame_HWC: Tensor, region: Region) -> Tensor:
    """The part of a picture; every part of pictures of one size has the same size."""
    height, width = frame_HWC.shape[:2]
    rows, columns = _part_size(height, width)
    top, left = round(region.y1 * height), round(region.x1 * width)
    return frame_HWC[top : top + rows, left : left + columns]


def join_zoomed(
    whole: Detections, near: Detections, region: Region, *, weight: float
) -> Detections:
    """Adds what zoomed detection found to what the whole picture shows, strongest first.

    Args:
        whole: found in the picture.
        near: found in its part; corners are fractions of the part.
        region: the part.
        weight: what its scores count: enlarged textures pass for objects more easily.
    """
    corners_K4, score_K = whole.corners_K4.copy(), whole.score_K.copy()
    class_K = whole.class_K.copy()
    num_whole = len(score_K)
    near_K4 = region.to_picture(near.corners_K4)
    near_score_K = (weight * near.score_K).astype(score_K.dtype)
    is_new_K = ~_is_cut_off(near.corners_K4, region) & (_longer_side(near.corners_K4) <= MAX_SIDE)
    overlap_KN, inside_KN = _overlaps(near_K4, corners_K4)
    for k in np.flatnonzero(is_new_K):
        for n in range(num_whole):
            if overlap_KN[k, n] > SAME_OVERLAP:
                is_new_K[k] = False
                if near_score_K[k] > score_K[n]:
                    corners_K4[n], score_K[n] = near_K4[k], near_score_K[k]
                    class_K[n] = near.class_K[k]
            elif inside_KN[k, n] > PIECE_SHARE and whole.score_K[n] >= WHOLE_SCORE:
                is_new_K[k] = False
    corners_K4 = np.concatenate([corners_K4, near_K4[is_new_K].astype(corners_K4.dtype)])
    score_K = np.concatenate([score_K, near_score_K[is_new_K]])
    class_K = np.concatenate([class_K, near.class_K[is_new_K]])
    order_K = np.argsort(-score_K, kind="stable")
    return Detections(corners_K4[order_K], score_K[order_K], class_K[order_K], zoomed_region=region)


def _part_size(height: int, width: int) -> tuple[int, int]:
    times = ZOOM_MAGNIFICATION
    return max(1, height // times), max(1, width // times)


def _longer_side(corners_K4: NDArray) -> NDArray:
    return (corners_K4[:, 2:] - corners_K4[:, :2]).max(axis=1, initial=0.0)


def _is_cut_off(corners_K4: NDArray, region: Region) -> NDArray:
    """Whether boxes of a part reach an edge of it that is none of the picture's."""
    inner_4 = np.array([region.x1 > 0, region.y1 > 0, region.x2 < 1, region.y2 < 1])
    room_K4 = np.concatenate([corners_K4[:, :2], 1.0 - corners_K4[:, 2:]], axis=1)
    return ((room_K4 < CUT_MARGIN) & inner_4).any(axis=1)


def _overlaps(a_K4: NDArray, b_N4: NDArray) -> tuple[NDArray, NDArray]:
    """Intersection over union, and over the area of `a`, [K, N] each."""
    a, b = a_K4[:, None].astype(float), b_N4[None].astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.clip(sides, 0.0, None).prod(axis=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b))
    tiny = np.finfo(float).tiny
    return common / np.maximum(area_a + area_b - common, tiny), common / np.maximum(area_a, tiny)
