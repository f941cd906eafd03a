"""Single labelled frames of Stage shards, kept in memory, and augmented pictures with their boxes.

Legend: B pictures, K boxes.
"""

import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from spatial_v2a.clip import Clip, read_shards
from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.config import ZOOM_MAGNIFICATION, BoxSettings
from spatial_v2a.errors import UserError
from spatial_v2a.training.loop import Batch

log = logging.getLogger(__name__)

FRAME_HEIGHT, FRAME_WIDTH = 240, 320  # as recorded: zoomed detection enlarges that
MIN_BOX_SIDE = 1 / 64  # of the picture's width
SHARE_WITH_BOXES = 0.65
REFRESH_EVERY_S = 60.0
MOSAIC_SHARE = 0.5
# From a picture with a margin to a part of it seen from nearer (`conditioning/detections.py`).
ZOOM_RANGE = (0.75, 1.1 * ZOOM_MAGNIFICATION)
_CLASS_INDEX = {name: i for i, name in enumerate(CLASS_NAMES)}


@dataclass(frozen=True)
class LabelledFrame:
    """One picture with its ground truth.

    Attributes:
        image_HWC: uint8 RGB at FRAME_HEIGHT x FRAME_WIDTH.
        boxes_K5: class, cx, cy, w, h; fractions of the picture, float32.
        depth_HW: the engine's depth buffer, uint8 [60, 80].
    """

    image_HWC: NDArray
    boxes_K5: NDArray
    depth_HW: NDArray


class FramePool:
    """Frames of all shards under some folders; `refresh` takes in shards that appeared since.

    Args:
        folders: where `*.tar` shards lie, at any depth.
        frames_per_clip: spread over the clip, one in a random place of each equal part.
        max_clips: stop after this many clips, or None.
    """

    def __init__(
        self, folders: list[Path], *, frames_per_clip: int, max_clips: int | None = None
    ) -> None:
        self.folders = folders
        self.frames_per_clip = frames_per_clip
        self.max_clips = max_clips
        self.frames: list[LabelledFrame] = []
        self.num_clips = 0
        self._read: set[Path] = set()
        self._refreshed_s = time.monotonic()
        self.refresh()
        if not self.frames:
            where = ", ".join(str(folder) for folder in folders)
            raise UserError(f"no clip found in {where}; record some with spatial-v2a-train record")

    def refresh(self) -> int:
        """Reads shards not read before; returns how many frames came in."""
        before = len(self.frames)
        for path in sorted(path for folder in self.folders for path in folder.rglob("*.tar")):
            if path in self._read:
                continue
            self._read.add(path)
            for clip in read_shards([path]):
                if self.max_clips is not None and self.num_clips >= self.max_clips:
                    return len(self.frames) - before
                self._take(clip)
        return len(self.frames) - before

    def refresh_if_due(self) -> bool:
        """Refreshes about once a minute; True when frames came in."""
        if time.monotonic() - self._refreshed_s < REFRESH_EVERY_S:
            return False
        self._refreshed_s = time.monotonic()
        num_new = self.refresh()
        if num_new:
            log.info("%d new frames, %d clips in all", num_new, self.num_clips)
        return num_new > 0

    def weights(self) -> NDArray:
        """Sampling weight per frame: pictures with boxes first, rare classes more often."""
        counts = np.ones(len(CLASS_NAMES))
        for frame in self.frames:
            np.add.at(counts, frame.boxes_K5[:, 0].astype(int), 1)
        value = 1.0 / np.sqrt(counts)
        weight = np.array(
            [value[f.boxes_K5[:, 0].astype(int)].max(initial=0.0) for f in self.frames]
        )
        total, is_empty = weight.sum(), weight == 0
        if total == 0:
            return np.full(len(weight), 1.0 / len(weight))
        weight *= SHARE_WITH_BOXES / total
        weight[is_empty] = (1.0 - SHARE_WITH_BOXES) / max(is_empty.sum(), 1)
        return weight / weight.sum()

    def _take(self, clip: Clip) -> None:
        random = np.random.default_rng(zlib.crc32(clip.key.encode()))
        edges = np.linspace(0, clip.num_ticks, self.frames_per_clip + 1).astype(int)
        for first, end in zip(edges[:-1], edges[1:], strict=True):
            if end > first:
                self.frames.append(labelled_frame(clip, int(random.integers(first, end))))
        self.num_clips += 1


def labelled_frame(clip: Clip, tick: int) -> LabelledFrame:
    """Picture, boxes and depth of one tick; boxes under MIN_BOX_SIDE are left out."""
    image = cv2.resize(clip.frame(tick), (FRAME_WIDTH, FRAME_HEIGHT), interpolation=cv2.INTER_AREA)
    rows = [
        (_CLASS_INDEX[b["class"]], b["x"] + b["w"] / 2, b["y"] + b["h"] / 2, b["w"], b["h"])
        for b in clip.meta["ticks"][tick]["boxes"]
        if min(b["w"], b["h"] * FRAME_HEIGHT / FRAME_WIDTH) >= MIN_BOX_SIDE
    ]
    boxes_K5 = np.array(rows, np.float32).reshape(-1, 5)
    return LabelledFrame(image, boxes_K5, clip.depth_THW[tick])


def crop(
    frame: LabelledFrame,
    *,
    scale: float,
    centre: tuple[float, float],
    height: int,
    width: int,
    is_flipped: bool,
) -> tuple[NDArray, NDArray]:
    """Cuts a window out of a frame, scaled and perhaps mirrored.

    Args:
        frame: the picture.
        scale: output pixels per frame pixel.
        centre: window centre as fractions of the frame.
        height, width: output size in pixels.
        is_flipped: mirrors the output left-right.

    Returns:
        The uint8 window [height, width, 3], grey outside the frame, and boxes [K, 5] as fractions
        of the window; boxes cut to less than 40 % or under 4 pixels are left out.
    """
    source_height, source_width = frame.image_HWC.shape[:2]
    sign = -1.0 if is_flipped else 1.0
    shift_x = width / 2 - sign * scale * centre[0] * source_width
    shift_y = height / 2 - scale * centre[1] * source_height
    affine = np.array([[sign * scale, 0, shift_x], [0, scale, shift_y]])
    window = cv2.warpAffine(
        frame.image_HWC, affine, (width, height), flags=cv2.INTER_LINEAR, borderValue=(114,) * 3
    )
    if not len(frame.boxes_K5):
        return window, frame.boxes_K5
    label, cx, cy, w, h = frame.boxes_K5.T
    cx = sign * scale * cx * source_width + shift_x
    cy = scale * cy * source_height + shift_y
    half_w, half_h = scale * w * source_width / 2, scale * h * source_height / 2
    x1, x2 = np.clip(cx - half_w, 0, width), np.clip(cx + half_w, 0, width)
    y1, y2 = np.clip(cy - half_h, 0, height), np.clip(cy + half_h, 0, height)
    new_w, new_h = x2 - x1, y2 - y1
    keep = (new_w * new_h >= 0.4 * 4 * half_w * half_h) & (np.minimum(new_w, new_h) >= 4.0)
    rows = (label, (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, new_w / width, new_h / height)
    return window, np.stack(rows, axis=1)[keep].astype(np.float32)


def detector_batches(
    pool: FramePool,
    settings: BoxSettings,
    *,
    random: np.random.Generator,
    batch_size: int,
) -> Iterator[Batch]:
    """Augmented batches without end; new shards are taken in about once a minute.

    Yields:
        Pictures [B, 3, H, W] in 0..1, and of the boxes of all the picture and class, cx, cy, w, h.
    """
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
        yield {
            "x_BCHW": x_BHWC.permute(0, 3, 1, 2).float().div_(255.0),
            "index_K": torch.from_numpy(index_K),
            "boxes_K5": torch.from_numpy(np.concatenate(boxes)),
        }


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
