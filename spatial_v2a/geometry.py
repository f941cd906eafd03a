"""Picture geometry that given and detected cues share: bearing, nearness, depth in a box."""

import math

import numpy as np
from numpy.typing import NDArray

# ZDoom's map unit and depth buffer: 32 units are taken as 1 m; one step of the 8-bit buffer is 7.35
# units along the viewing axis. Fitted on 3272 labelled objects (docs/perception.md), error < 4 %.
UNITS_PER_M = 32.0
BUFFER_STEP_M = 7.35 / UNITS_PER_M
BUFFER_OFFSET_STEPS = 0.7
NEARNESS_HALF_M = 8.0


def azimuth_rad(cx: float | NDArray, fov_deg: float) -> float | NDArray:
    """Bearing of a picture column for a pinhole camera, POSITIVE TO THE LEFT.

    Args:
        cx: column as a fraction of the picture's width, 0 (left edge) .. 1 (right edge).
        fov_deg: horizontal field of view in degrees, in (0, 180).

    Returns:
        Radians; +fov/2 at the left edge, 0 in the middle, -fov/2 at the right edge.
    """
    return np.arctan((1.0 - 2.0 * np.asarray(cx)) * math.tan(math.radians(fov_deg) / 2.0))


def column(azimuth_rad: float, fov_deg: float) -> float:
    """Inverse of `azimuth_rad`: the column of a bearing in (-pi/2, pi/2), in the picture or not."""
    return 0.5 * (1.0 - math.tan(azimuth_rad) / math.tan(math.radians(fov_deg) / 2.0))


def slide_turn_deg(slide: float, fov_deg: float) -> float:
    """Degrees a camera turned, POSITIVE TO THE LEFT, whose picture slid to the right.

    Args:
        slide: of the middle of the picture, as a share of its width.
        fov_deg: horizontal field of view in degrees, in (0, 180).
    """
    return math.degrees(math.atan(2.0 * slide * math.tan(math.radians(fov_deg) / 2.0)))


def nearness(depth_m: float | NDArray) -> float | NDArray:
    """Maps metric depth to (0, 1]: 1 touches the camera, 1/2 at NEARNESS_HALF_M, 0 is infinity.

    Works on numbers, numpy arrays and torch tensors alike.
    """
    return 1.0 / (1.0 + depth_m / NEARNESS_HALF_M)


def depth_m_from_nearness(near: float | NDArray) -> float | NDArray:
    """Inverse of `nearness`; metres."""
    return NEARNESS_HALF_M * (1.0 / near - 1.0)


def depth_m_from_buffer(buffer: float | NDArray) -> float | NDArray:
    """Metres along the viewing axis from the engine's 8-bit depth buffer (0..255)."""
    return (np.asarray(buffer, dtype=np.float32) + BUFFER_OFFSET_STEPS) * BUFFER_STEP_M


def nearness_from_buffer(buffer: float | NDArray) -> NDArray:
    """Nearness in (0, 1] from the engine's 8-bit depth buffer (uint8 or its area mean)."""
    return nearness(depth_m_from_buffer(buffer))


def pool_grid(map_HW: NDArray, grid: tuple[int, int]) -> NDArray:
    """Area mean of maps [..., H, W] over a coarse grid (rows, columns) that divides H and W."""
    rows, columns = grid
    height, width = map_HW.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(f"a {height}x{width} map does not divide into a {rows}x{columns} grid")
    shape = (*map_HW.shape[:-2], rows, height // rows, columns, width // columns)
    return map_HW.reshape(shape).mean(axis=(-3, -1))


def nearness_in_boxes(grid_HW: NDArray, boxes_K4: NDArray) -> NDArray:
    """Mean nearness in the middle half of each box, sampled at 3 x 3 points of the grid.

    Args:
        grid_HW: nearness grid [H, W].
        boxes_K4: cx, cy, w, h as fractions of the picture [K, 4].

    Returns:
        [K] in the grid's range.
    """
    height, width = grid_HW.shape
    offsets = np.array([-0.25, 0.0, 0.25])
    x_K3 = boxes_K4[:, 0:1] + boxes_K4[:, 2:3] * offsets
    y_K3 = boxes_K4[:, 1:2] + boxes_K4[:, 3:4] * offsets
    columns_K3 = np.clip((x_K3 * width).astype(int), 0, width - 1)
    rows_K3 = np.clip((y_K3 * height).astype(int), 0, height - 1)
    return grid_HW[rows_K3[:, :, None], columns_K3[:, None, :]].mean(axis=(1, 2))
