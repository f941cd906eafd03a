"""What perception hands to the model for each tick, with fixed shapes and presence flags.

Legend: B streams, T ticks, N DINO patches (row-major over the grid), D feature width,
H x W coarse depth grid, K box slots, F fields of a box.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# cx, cy, w, h: fractions of the picture (0..1, x to the right, y down).
# vx, vy: change of cx, cy in picture widths / heights per second.
# score: detector confidence 0..1 (1 when the geometry is given).
# nearness: mean of the depth grid's nearness inside the box, 0 (far) .. 1 (touching).
# azimuth: bearing of the box centre in radians, POSITIVE TO THE LEFT, from the field of view.
# age: seconds since the track began, capped at 4.
BOX_FIELDS = ("cx", "cy", "w", "h", "vx", "vy", "score", "nearness", "azimuth", "age")
MAX_AGE_S = 4.0


@dataclass
class FrameFeatures:
    """Perception of T ticks for B streams; absent streams hold zeros and has_* False.

    Attributes:
        dino_BTND: patch features [B, T, N, D], float.
        depth_BTHW: nearness map [B, T, H, W] in [0, 1], 1 is touching the camera.
        boxes_BTKF: box fields [B, T, K, len(BOX_FIELDS)], float, in BOX_FIELDS order.
        class_BTK: class index [B, T, K], int64.
        box_mask_BTK: True where the slot holds a box.
        has_dino_BT, has_depth_BT, has_boxes_BT: False replaces the stream by its null embedding
            (an empty but working detector is has_boxes True with no slot set).
        is_cut_BT: another scene begins here (`conditioning/scene.py`): the engine forgets what
            it heard before. Training does not look at it.
    """

    dino_BTND: Tensor
    depth_BTHW: Tensor
    boxes_BTKF: Tensor
    class_BTK: Tensor
    box_mask_BTK: Tensor
    has_dino_BT: Tensor
    has_depth_BT: Tensor
    has_boxes_BT: Tensor
    is_cut_BT: Tensor

    def map(self, function) -> "FrameFeatures":
        """Applies `function` to every tensor."""
        return FrameFeatures(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def expand(self, num_streams: int) -> "FrameFeatures":
        """The same perception of one stream for several."""
        return self.map(lambda x: x.expand(num_streams, *x.shape[1:]).contiguous())

    def without(self, *streams: str) -> "FrameFeatures":
        """Switches whole streams off; names among 'dino', 'depth', 'boxes'.

        The nearness of a box is read from the depth map: it goes with depth.
        """
        unknown = set(streams) - {"dino", "depth", "boxes"}
        if unknown:
            raise ValueError(f"unknown streams {sorted(unknown)}; choose from dino, depth, boxes")
        flags = {f"has_{s}_BT": torch.zeros_like(getattr(self, f"has_{s}_BT")) for s in streams}
        lost = replace(self, **flags)
        if "depth" not in streams:
            return lost
        return replace(lost, boxes_BTKF=without_nearness(self.boxes_BTKF))


def without_nearness(boxes_BTKF: Tensor) -> Tensor:
    """Box fields in which every nearness is 0, as when no depth map was there to read it from."""
    keep_F = torch.ones(len(BOX_FIELDS), dtype=boxes_BTKF.dtype, device=boxes_BTKF.device)
    keep_F[BOX_FIELDS.index("nearness")] = 0
    return boxes_BTKF * keep_F


def empty_features(
    batch_size: int,
    num_ticks: int,
    *,
    num_patches: int,
    dino_dim: int,
    depth_grid: tuple[int, int],
    max_boxes: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FrameFeatures:
    """All-zero features with every stream absent."""
    bt = (batch_size, num_ticks)

    def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(*bt, *shape, device=device, dtype=kind)

    return FrameFeatures(
        dino_BTND=zeros(num_patches, dino_dim),
        depth_BTHW=zeros(*depth_grid),
        boxes_BTKF=zeros(max_boxes, len(BOX_FIELDS)),
        class_BTK=zeros(max_boxes, kind=torch.int64),
        box_mask_BTK=zeros(max_boxes, kind=torch.bool),
        has_dino_BT=zeros(kind=torch.bool),
        has_depth_BT=zeros(kind=torch.bool),
        has_boxes_BT=zeros(kind=torch.bool),
        is_cut_BT=zeros(kind=torch.bool),
    )


def mirror_features(features: FrameFeatures, *, grid_width: int) -> FrameFeatures:
    """Flips the picture left-right (the sound of it has its channels swapped).

    Args:
        features: perception of the original picture.
        grid_width: patches per row of the DINO grid.
    """
    dino = features.dino_BTND.unflatten(2, (-1, grid_width)).flip(3).flatten(2, 3)
    sign = torch.ones(len(BOX_FIELDS), device=features.boxes_BTKF.device)
    for name in ("cx", "vx", "azimuth"):
        sign[BOX_FIELDS.index(name)] = -1.0
    boxes = features.boxes_BTKF * sign.to(features.boxes_BTKF.dtype)
    boxes[..., BOX_FIELDS.index("cx")] += 1.0
    boxes = boxes * features.box_mask_BTK.unsqueeze(-1)
    return replace(
        features, dino_BTND=dino, depth_BTHW=features.depth_BTHW.flip(-1), boxes_BTKF=boxes
    )
