"""Hears every object alone beside the whole: one stream of the engine for all, one per object.

Objects come and go, streams do not: a new object takes over the stream that has been without one
for longest. All streams draw from one noise, so that an object alone sounds as it does in the mix.
Legend: K box slots, S soloists, B = 1 + S streams, L samples, C audio channels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spatial_v2a.conditioning.box_fields import Box, slots_of
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.geometry import azimuth_rad


@dataclass
class Part:
    """What one soloist plays of one object.

    Attributes:
        soloist: number of the stream, from 0.
        track_id: the object.
        first_tick: when it took the stream over; the part ends where the next one begins.
    """

    soloist: int
    track_id: int
    first_tick: int


@dataclass(frozen=True)
class Sighting:
    """An object in one tick: bearing in degrees, positive to the left, and nearness 0..1."""

    tick: int
    azimuth_deg: float
    nearness: float


class Soloists:
    """Says what each stream sees, tick by tick, and who played what.

    Args:
        num_soloists: S; with as many as box slots none is ever taken from an object in the picture.

    Attributes:
        parts: what was played, in the order in which it began.
        sightings: every object's, by its id.
        class_index: the newest class of every object, by its id.
    """

    def __init__(self, num_soloists: int) -> None:
        self.parts: list[Part] = []
        self.sightings: dict[int, list[Sighting]] = {}
        self.class_index: dict[int, int] = {}
        self._track_of: list[int | None] = [None] * num_soloists
        self._last_tick = [-1] * num_soloists
        self._tick = 0

    def assign(
        self, features: FrameFeatures, boxes: tuple[Box, ...], *, fov_deg: float
    ) -> tuple[FrameFeatures, Tensor, Tensor]:
        """What the streams see in a tick.

        Args:
            features: of the whole tick, [1, 1].
            boxes: the tick's boxes, in the order in which `features` was made of them.
            fov_deg: horizontal field of view, degrees.

        Returns:
            features [B, 1], which soloists play and which streams begin anew, bool [S] and [B].
        """
        num_slots = features.box_mask_BTK.shape[-1]
        slot_of = {boxes[i].track_id: k for k, i in enumerate(slots_of(boxes, num_slots))}
        fresh = self._seat(list(slot_of))
        for box in boxes:
            if box.track_id in slot_of:
                self._note(box, features, slot_of[box.track_id], fov_deg)
        mask_BK = torch.zeros(1 + len(self._track_of), num_slots, dtype=torch.bool)
        mask_BK[0] = features.box_mask_BTK[0, 0]
        for soloist, track_id in enumerate(self._track_of):
            if track_id in slot_of:
                mask_BK[1 + soloist, slot_of[track_id]] = True
        batch = features.expand(len(mask_BK))
        keep_B1K1 = mask_BK[:, None, :, None]
        batch = replace(
            batch,
            boxes_BTKF=batch.boxes_BTKF * keep_B1K1,
            class_BTK=batch.class_BTK * mask_BK[:, None],
            box_mask_BTK=mask_BK[:, None],
        )
        plays_S = torch.tensor([track is not None for track in self._track_of])
        self._tick += 1
        return batch, plays_S, torch.tensor([False, *fresh])

    def _seat(self, track_ids: list[int]) -> list[bool]:
        """Gives every object a stream; True where one begins anew."""
        fresh = [False] * len(self._track_of)
        for track_id in track_ids:
            if track_id not in self._track_of:
                free = [s for s, known in enumerate(self._track_of) if known not in track_ids]
                soloist = min(free, key=lambda s: self._last_tick[s])
                self._track_of[soloist], fresh[soloist] = track_id, True
                self.parts.append(Part(soloist, track_id, self._tick))
            self._last_tick[self._track_of.index(track_id)] = self._tick
        return fresh

    def _note(self, box: Box, features: FrameFeatures, slot: int, fov_deg: float) -> None:
        near = float(features.boxes_BTKF[0, 0, slot, BOX_FIELDS.index("nearness")])
        bearing_deg = float(np.degrees(azimuth_rad(box.cx, fov_deg)))
        seen = self.sightings.setdefault(box.track_id, [])
        seen.append(Sighting(self._tick, bearing_deg, near))
        self.class_index[box.track_id] = box.class_index
