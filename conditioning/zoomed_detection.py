"""A second look of the detector at a part of the picture, from nearer: small objects are far ones.

Half of the picture's width and height is seen at twice the size: left, middle and right in turns.
What is small stands near the horizon, so all of them lie a little below
the middle of the picture.

Legend: B pictures, K boxes; corners are x1, y1, x2, y2 as fractions of the picture.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.conditioning.detections import Detections, Region
from spatial_v2a.perception_config import ZOOM_MAGNIFICATION

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
