"""Single labelled frames, drawn from Stage shards and kept in memory, for training perception."""

import logging
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from spatial_v2a.clip import Clip, read_shards
from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.errors import UserError

log = logging.getLogger(__name__)

FRAME_HEIGHT, FRAME_WIDTH = 240, 320  # as recorded: zoomed detection enlarges that
MIN_BOX_SIDE = 1 / 64  # of the picture's width
SHARE_WITH_BOXES = 0.65
REFRESH_EVERY_S = 60.0
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
