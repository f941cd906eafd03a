"""Streams dropped in training, so that any subset works and guidance has something to compare."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from spatial_v2a.features import FrameFeatures, without_nearness
from spatial_v2a.strict import StrictConfig


class StreamDropout(StrictConfig):
    """Probability that a whole training sequence loses a stream.

    Attributes:
        boxes, depth, dino: each stream on its own.
        spatial: boxes and depth together, the condition that spatial guidance compares with.
        all: every stream, the unconditional one.
    """

    boxes: float = Field(default=0.1, ge=0, le=1)
    depth: float = Field(default=0.15, ge=0, le=1)
    dino: float = Field(default=0.3, ge=0, le=1)
    spatial: float = Field(default=0.05, ge=0, le=1)
    all: float = Field(default=0.1, ge=0, le=1)


def drop_streams(
    features: FrameFeatures, probabilities: StreamDropout, *, generator: torch.Generator
) -> FrameFeatures:
    """Clears presence flags of whole sequences at random; with depth goes the boxes' nearness.

    Args:
        features: perception of B sequences.
        probabilities: chance of each kind of loss.
        generator: source of the draws, on the CPU.
    """
    p = probabilities
    draws_5B = torch.rand(5, features.has_dino_BT.shape[0], generator=generator)
    chance = torch.tensor([p.boxes, p.depth, p.dino, p.spatial, p.all])[:, None]
    boxes, depth, dino, spatial, everything = (draws_5B < chance).to(features.has_dino_BT.device)

    def keep(has_BT: Tensor, lost_B: Tensor) -> Tensor:
        return has_BT & ~(lost_B | everything)[:, None]

    has_depth_BT = keep(features.has_depth_BT, depth | spatial)
    lost_BT = features.has_depth_BT & ~has_depth_BT
    boxes_BTKF = features.boxes_BTKF
    return replace(
        features,
        boxes_BTKF=torch.where(lost_BT[..., None, None], without_nearness(boxes_BTKF), boxes_BTKF),
        has_dino_BT=keep(features.has_dino_BT, dino),
        has_depth_BT=has_depth_BT,
        has_boxes_BT=keep(features.has_boxes_BT, boxes | spatial),
    )
