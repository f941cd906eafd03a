"""Augmented pictures with their boxes, for the training of every detector.

Legend: B pictures, K boxes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.perception_config import ZOOM_MAGNIFICATION, BoxSettings
from spatial_v2a.training.perception_data import FramePool, LabelledFrame, crop

BATCH_SIZE = 16
MOSAIC_SHARE = 0.5
# From a picture with a margin to a part of it seen from nearer (`conditioning/detections.py`).
ZOOM_RANGE = (0.75, 1.1 * ZOOM_MAGNIFICATION)


@dataclass
class DetectorBatch:
    """Pictures [B, 3, H, W] in 0..1 and the boxes of all: picture index, class, cx, cy, w, h."""

    x_BCHW: Tensor
    index_K: Tensor
    boxes_K5: Tensor


def detector_batches(
    pool: FramePool,
    settings: BoxSettings,
    *,
    random: np.random.Generator,
    batch_size: int = BATCH_SIZE,
) -> Iterator[DetectorBatch]:
    """Endless augmented batches; new shards are taken in about once a minute."""
    weights = pool.weights()
    while True:
        if pool.refresh_if_due():
            weights = pool.weights()
        images, boxes = [], []
        for _ in range(batch_size):
            image, found_K5 = augmented(pool.frames, weights, settings, random=random)
            images.append(image)
            boxes.append(found_K5)
        x_BHWC = torch.from_numpy(np.stack(images))
        index_K = np.repeat(np.arange(batch_size), [len(b) for b in boxes]).astype(np.float32)
        yield DetectorBatch(
            x_BHWC.permute(0, 3, 1, 2).float().div_(255.0),
            torch.from_numpy(index_K),
            torch.from_numpy(np.concatenate(boxes)),
        )


def augmented(
    frames: list[LabelledFrame],
    weights: NDArray,
    settings: BoxSettings,
    *,
    random: np.random.Generator,
) -> tuple[NDArray, NDArray]:
    """One training picture: a jittered frame, or four windows around objects side by side."""
    height, width = settings.image_height, settings.image_width
    picks = random.choice(len(frames), size=4, p=weights)
    if random.random() >= MOSAIC_SHARE:
        zoom = np.exp(random.uniform(*np.log(ZOOM_RANGE)))
        scale = zoom * width / frames[picks[0]].image_HWC.shape[1]
        jitter = 0.15 * max(zoom, 1.0)
        centre = (random.uniform(0.5 - jitter, 0.5 + jitter), random.uniform(0.4, 0.6))
        image, boxes_K5 = crop(
            frames[picks[0]],
            scale=scale,
            centre=centre,
            height=height,
            width=width,
            is_flipped=random.random() < 0.5,
        )
        return _brightness(image, random), boxes_K5
    image = np.empty((height, width, 3), np.uint8)
    boxes = []
    tile_height, tile_width = height // 2, width // 2
    for tile, pick in enumerate(picks):
        row, column = divmod(tile, 2)
        window, found_K5 = _object_window(frames[pick], tile_height, tile_width, random)
        top, left = row * tile_height, column * tile_width
        image[top : top + tile_height, left : left + tile_width] = _brightness(window, random)
        offset = np.array([0, column / 2, row / 2, 0, 0], np.float32)
        boxes.append(found_K5 * np.array([1, 0.5, 0.5, 0.5, 0.5], np.float32) + offset)
    return image, np.concatenate(boxes)


def _object_window(
    frame: LabelledFrame, height: int, width: int, random: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """A window that holds one of the frame's boxes when it has any."""
    scale = random.uniform(0.6, 1.3) * 2 * width / frame.image_HWC.shape[1]
    centre_x, centre_y = random.uniform(0.2, 0.8), random.uniform(0.3, 0.7)
    if len(frame.boxes_K5):
        source_height, source_width = frame.image_HWC.shape[:2]
        _, cx, cy, w, h = frame.boxes_K5[random.integers(len(frame.boxes_K5))]
        fit = min(width / (w * source_width), height / (h * source_height))
        scale = min(scale, fit * random.uniform(0.7, 1.2))
        slack_x = max(width / (scale * source_width) - w, 0.0) / 2
        slack_y = max(height / (scale * source_height) - h, 0.0) / 2
        centre_x = cx + random.uniform(-slack_x, slack_x)
        centre_y = cy + random.uniform(-slack_y, slack_y)
    return crop(
        frame,
        scale=scale,
        centre=(centre_x, centre_y),
        height=height,
        width=width,
        is_flipped=random.random() < 0.5,
    )


def _brightness(image_HWC: NDArray, random: np.random.Generator) -> NDArray:
    table = (np.arange(256) * random.uniform(0.7, 1.3) + random.uniform(-12, 12)).clip(0, 255)
    return table.astype(np.uint8)[image_HWC]
