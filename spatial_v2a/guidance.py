"""Classifier-free guidance, both halves: streams dropped in training, conditions combined later."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from spatial_v2a.features import FrameFeatures
from spatial_v2a.generator import Condition
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
    """Clears presence flags of whole sequences at random.

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

    return replace(
        features,
        has_dino_BT=keep(features.has_dino_BT, dino),
        has_depth_BT=keep(features.has_depth_BT, depth | spatial),
        has_boxes_BT=keep(features.has_boxes_BT, boxes | spatial),
    )


def guidance_rows(features: FrameFeatures) -> FrameFeatures:
    """Three rows per stream, [3 B, ...]: everything, no depth and boxes, nothing at all."""
    rows = [
        features,
        features.without("depth", "boxes"),
        features.without("dino", "depth", "boxes"),
    ]
    return FrameFeatures(
        **{name: torch.cat([getattr(row, name) for row in rows]) for name in vars(features)}
    )


def combine_guidance(
    condition: Condition, *, guidance: float, spatial_guidance: float
) -> Condition:
    """Combines the rows of `guidance_rows` into one condition per stream.

    c = null + guidance (content - null) + spatial_guidance (full - content); (1, 1) gives full.
    It acts on the condition, so the head runs once per stream.

    Args:
        condition: condition of 3 B rows.
        guidance: weight of what is seen, without its place.
        spatial_guidance: weight of depth and boxes.
    """

    def combine(rows: Tensor) -> Tensor:
        full, content, null = rows.chunk(3)
        return null + guidance * (content - null) + spatial_guidance * (full - content)

    return condition.map(combine)
