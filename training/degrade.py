"""Makes given boxes as imperfect as detected ones, so that a generator bears real detectors.

Every kind of fault lasts as long as it does for a tracker: a lost object is gone for some ticks, a
wrong class stays for the life of the track. Legend: T ticks.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.geometry import depth_m_from_nearness, nearness
from spatial_v2a.timing import TIMING

FALSE_TRACK_ID = 1_000_000


@dataclass(frozen=True)
class DegradeSettings:
    """How often and how far detections differ from the truth.

    Attributes:
        jitter: deviation of a side or centre, as a share of the box's size.
        jitter_side: above this smaller side (share of the picture) the deviation stays a length:
            detectors err by pixels.
        jitter_memory: share of the last tick's error that stays (detectors err slowly).
        drop_share: share of ticks in which a box is not seen, in gaps of `gap_ticks` on average.
        confusion_share: share of tracks whose class is wrong throughout.
        false_per_s: false objects that begin, per second.
        false_ticks: mean life of a false object.
        late_share, late_ticks: tracks that begin late, and by how much at most.
        depth_offset: deviation of log depth that a whole clip shares.
        depth_field: deviation of log depth that varies over the picture and, slowly, in time.
        depth_memory: share of the last tick's depth error that stays.
        small_side: boxes whose smaller side is below this share of the picture fade out.
    """

    jitter: float = 0.05
    jitter_side: float = 0.08
    jitter_memory: float = 0.8
    drop_share: float = 0.07
    gap_ticks: float = 4.0
    confusion_share: float = 0.05
    false_per_s: float = 0.12
    false_ticks: float = 6.0
    late_share: float = 0.2
    late_ticks: int = 6
    small_side: float = 0.03
    depth_offset: float = 0.25
    depth_field: float = 0.35
    depth_memory: float = 0.97


class Degrader:
    """A callable for `clip_features(degrade=...)`.

    Args:
        config: number of classes.
        random: source of all faults; one Degrader per clip view.
        settings: how much.
    """

    def __init__(
        self,
        config: PerceptionConfig,
        random: np.random.Generator,
        *,
        settings: DegradeSettings | None = None,
    ) -> None:
        self.num_classes = config.shapes.num_classes
        self.random = random
        self.settings = settings or DegradeSettings()

    def __call__(self, boxes_T: list[list[Box]]) -> list[list[Box]]:
        """Boxes of every tick with faults; ids of true objects stay."""
        seen_T: list[list[Box]] = [[] for _ in boxes_T]
        for track_id in sorted({box.track_id for boxes in boxes_T for box in boxes}):
            life = [(t, b) for t, boxes in enumerate(boxes_T) for b in boxes]
            self._degrade_track([(t, b) for t, b in life if b.track_id == track_id], seen_T)
        self._add_false(seen_T)
        return seen_T

    def nearness(self, grid_THW: NDArray) -> NDArray:
        """Nearness grids with a smooth, slowly changing error of log depth."""
        s, random = self.settings, self.random
        num_ticks, height, width = grid_THW.shape
        error_THW = np.empty((num_ticks, 3, 4), np.float32)
        error_THW[0] = random.normal(0.0, s.depth_field, (3, 4))
        fresh = np.sqrt(1.0 - s.depth_memory**2) * s.depth_field
        steps_THW = random.normal(0.0, fresh, (num_ticks, 3, 4))
        for tick in range(1, num_ticks):
            error_THW[tick] = s.depth_memory * error_THW[tick - 1] + steps_THW[tick]
        error_THW += random.normal(0.0, s.depth_offset)
        smooth_THW = functional.interpolate(
            torch.from_numpy(error_THW)[None], (height, width), mode="bilinear"
        )[0].numpy()
        depth_m = depth_m_from_nearness(np.maximum(grid_THW, 1e-3))
        return nearness(depth_m * np.exp(smooth_THW)).astype(np.float32)

    def _degrade_track(self, life: list[tuple[int, Box]], seen_T: list[list[Box]]) -> None:
        """Copies one object's boxes with slow jitter, gaps, a late start, perhaps a wrong class."""
        s, random = self.settings, self.random
        label = life[0][1].class_index
        if random.random() < s.confusion_share:
            label = int(random.integers(self.num_classes))
        first = life[0][0]
        if random.random() < s.late_share:
            first += int(random.integers(1, s.late_ticks + 1))
        confidence = random.uniform(0.5, 0.95)
        error_4, is_lost = random.normal(0.0, 1.0, 4), False
        lose = s.drop_share / (s.gap_ticks * (1.0 - s.drop_share))
        fresh = np.sqrt(1.0 - s.jitter_memory**2)
        for tick, box in life:
            error_4 = s.jitter_memory * error_4 + random.normal(0.0, fresh, 4)
            is_lost = random.random() < (1.0 - 1.0 / s.gap_ticks if is_lost else lose)
            fade = min(box.w, box.h) / s.small_side
            if is_lost or tick < first or random.random() > fade:
                continue
            score = float(np.clip(confidence + random.normal(0.0, 0.05), 0.2, 1.0))
            jitter = s.jitter * min(1.0, s.jitter_side / max(min(box.w, box.h), 1e-6))
            named = replace(box, class_index=label, score=score)
            seen_T[tick].append(_moved(named, jitter * error_4))

    def _add_false(self, seen_T: list[list[Box]]) -> None:
        s, random = self.settings, self.random
        num_false = random.poisson(s.false_per_s * len(seen_T) / TIMING.tick_hz)
        for number in range(num_false):
            first = int(random.integers(len(seen_T)))
            end = first + 1 + int(random.geometric(1.0 / s.false_ticks))
            label, score = int(random.integers(self.num_classes)), random.uniform(0.2, 0.6)
            cx, cy = random.uniform(0.05, 0.95), random.uniform(0.35, 0.75)
            w, h = random.uniform(0.03, 0.2), random.uniform(0.05, 0.35)
            for tick in range(first, min(end, len(seen_T))):
                cx, cy = cx + random.normal(0.0, 0.003), cy + random.normal(0.0, 0.003)
                box = Box(FALSE_TRACK_ID + number, label, cx, cy, w, h, score)
                seen_T[tick].append(_moved(box, np.zeros(4)))


def _moved(box: Box, error_4: np.ndarray) -> Box:
    """Shifts and stretches a box by shares of its size, cut to the picture."""
    cx, cy = box.cx + error_4[0] * box.w, box.cy + error_4[1] * box.h
    w, h = box.w * np.exp(error_4[2]), box.h * np.exp(error_4[3])
    low = np.clip([cx - w / 2, cy - h / 2], 0.0, 0.995)
    high = np.clip([cx + w / 2, cy + h / 2], low + 0.005, 1.0)
    (cx, cy), (w, h) = (low + high) / 2, high - low
    return replace(box, cx=float(cx), cy=float(cy), w=float(w), h=float(h))
