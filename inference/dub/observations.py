"""Where every object of a video was seen, tick by tick: the curves beside its stem."""

from dataclasses import dataclass

import numpy as np

from spatial_v2a.conditioning.boxes import Box, slots_of
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.geometry import azimuth_rad


@dataclass(frozen=True)
class Observation:
    """An object in one tick: bearing in degrees, positive to the left, and nearness 0..1."""

    tick: int
    azimuth_deg: float
    nearness: float


class Observations:
    """Notes the objects of one tick after another; boxes that are only held are no observations.

    Attributes:
        of_object: every object's observations, by its id.
        class_index: the newest class of every object, by its id.
    """

    def __init__(self) -> None:
        self.of_object: dict[int, list[Observation]] = {}
        self.class_index: dict[int, int] = {}
        self._tick = 0

    def add(self, features: FrameFeatures, boxes: tuple[Box, ...], *, fov_deg: float) -> None:
        """Notes a tick.

        Args:
            features: of the whole tick, [1, 1].
            boxes: the tick's boxes, in the order in which `features` was made of them.
            fov_deg: horizontal field of view, degrees.
        """
        near_K = features.boxes_BTKF[0, 0, :, BOX_FIELDS.index("nearness")].tolist()
        for slot, place in enumerate(slots_of(boxes, len(near_K))):
            box = boxes[place]
            if not box.is_persisted:
                bearing_deg = float(np.degrees(azimuth_rad(box.cx, fov_deg)))
                seen = self.of_object.setdefault(box.track_id, [])
                seen.append(Observation(self._tick, bearing_deg, near_K[slot]))
                self.class_index[box.track_id] = box.class_index
        self._tick += 1
