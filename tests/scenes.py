"""Made-up pictures wide enough to turn in, and a detector that sees one object in them."""

from pathlib import Path

import numpy as np
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.inference.engine.pipeline import Pipeline

HEIGHT, WIDTH = 120, 160


def scene(seed: int, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture of rough blobs in two colours, wider than it is shown: [height, 3 * width, 3]."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0 : 3 * width] / height
    light = np.zeros(rows.shape)
    for _ in range(60):
        y, x, size = random.uniform(0, 1), random.uniform(0, 4), random.uniform(0.05, 0.25)
        light += random.uniform(-1, 1) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2)
    light += np.kron(random.normal(0, 0.3, (20, 80)), np.ones((height // 20, 3 * width // 80)))
    light = (light - light.min()) / np.ptp(light)
    low, high = random.uniform(0, 255, (2, 3))
    return (low + light[..., None] * (high - low)).astype(np.uint8)


def view(picture: np.ndarray, x: int = 0) -> np.ndarray:
    return picture[:, x : x + picture.shape[1] // 3]


class OneObject:
    """A detector that finds the same object in the first pictures, and nothing after."""

    def __init__(self, num_pictures: int) -> None:
        self.left = num_pictures

    def detect(self, frames_BHWC: torch.Tensor) -> list[Detections]:
        """Of every picture."""
        return [self._one() for _ in frames_BHWC]

    def _one(self) -> Detections:
        self.left -= 1
        shown = int(self.left >= 0)
        corners = np.array([[0.2, 0.4, 0.3, 0.6]], np.float32)[:shown]
        return Detections(corners, np.full(shown, 0.9, np.float32), np.full(shown, 2))


def perception(folder: Path, config: Config, detector: OneObject | None = None) -> Perception:
    """Sees depth; once, so that the detector is asked once a picture."""
    boxes = config.perception.detector.model_copy(update={"zoom_weight": 0.0})
    found = Perception.from_checkpoint(folder, config.perception)
    seen = config.perception.model_copy(update={"detector": boxes})
    return Perception(seen, dino=found.dino, depth=found.depth, detector=detector or found.detector)


def looking(folder: Path, config: Config, detector: OneObject) -> Pipeline:
    """The same as a pipeline that only looks."""
    seen = perception(folder, config, detector)
    return Pipeline(folder, perception=seen, fov_deg=90.0, hears=False)
