"""Says what each stream hears that hears objects alone beside the whole, tick by tick.

One stream is for all that is seen, each of the others for one object (`allocator.py`): it gets the
whole picture and the box of its object only. All draw from one noise, so that an object alone
sounds as it does beside others.
Legend: K box slots, S object streams, B = 1 + S streams.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spatial_v2a.conditioning.boxes import Box, slots_of
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.allocator import Allocation, Allocator


@dataclass(frozen=True)
class Assigned:
    """The streams in one tick.

    Attributes:
        features: what each sees, [B, 1].
        fresh_B: those that begin anew, bool [B].
        num_objects: how many objects have a box.
        allocation: who hears which of them.
    """

    features: FrameFeatures
    fresh_B: Tensor
    num_objects: int
    allocation: Allocation


class ObjectStreams:
    """Says what each stream sees, tick by tick.

    Args:
        num_object_streams: S; with as many as box slots hardly an object shares its stream. 0
            leaves the stream that hears everything.
    """

    def __init__(self, num_object_streams: int) -> None:
        self.num_object_streams = num_object_streams
        self._allocator = Allocator(num_object_streams)

    def assign(self, features: FrameFeatures, boxes: tuple[Box, ...]) -> Assigned:
        """What the streams see in a tick.

        Args:
            features: of the whole tick, [1, 1].
            boxes: the tick's boxes, in the order in which `features` was made of them.
        """
        num_slots = features.box_mask_BTK.shape[-1]
        in_slots = [boxes[i] for i in slots_of(boxes, num_slots)]
        slot_of = {box.track_id: slot for slot, box in enumerate(in_slots)}
        allocation = self._allocator.step({box.track_id: box.w * box.h for box in in_slots})
        mask_BK = torch.zeros(1 + self.num_object_streams, num_slots, dtype=torch.bool)
        mask_BK[0] = features.box_mask_BTK[0, 0]
        for object_stream, objects in enumerate(allocation.objects_S, start=1):
            mask_BK[object_stream, [slot_of[track_id] for track_id in objects]] = True
        return Assigned(
            features=_with_boxes(features, mask_BK),
            fresh_B=torch.tensor([False, *allocation.fresh_S]),
            num_objects=len(slot_of),
            allocation=allocation,
        )


def _with_boxes(features: FrameFeatures, mask_BK: Tensor) -> FrameFeatures:
    """One stream's tick [1, 1] for B streams, each with some of its boxes."""
    batch = features.expand(len(mask_BK))
    return replace(
        batch,
        boxes_BTKF=batch.boxes_BTKF * mask_BK[:, None, :, None],
        class_BTK=batch.class_BTK * mask_BK[:, None],
        box_mask_BTK=mask_BK[:, None],
    )
