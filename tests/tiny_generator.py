"""Tiny generators and random features for tests."""

import torch
from torch import Tensor

from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.models.conditioner import ConditionerConfig, PerceptionShapes
from spatial_v2a.models.generator import Generator, GeneratorConfig
from spatial_v2a.models.head import HeadConfig
from spatial_v2a.models.transformer import BackboneConfig

LATENT_DIM = 4
SHAPES = PerceptionShapes(
    num_patches=12, grid_width=4, dino_dim=6, depth_grid=(4, 8), max_boxes=3, num_classes=5
)
CONDITIONER = ConditionerConfig(
    width=16,
    num_heads=2,
    num_layers=2,
    hidden_dim=24,
    class_dim=8,
    token_dim=12,
    dino_tokens=(1, 2),
    depth_tokens=(1, 2),
)
BACKBONE = BackboneConfig(width=16, num_layers=2, num_heads=2, hidden_dim=24, window_ticks=5)
HEAD = HeadConfig(width=24, num_blocks=2, hidden_dim=32, sigma_dim=16)


def tiny_generator(**changes: object) -> Generator:
    """A generator of a few thousand parameters with every parameter away from zero."""
    config = GeneratorConfig(
        conditioner=CONDITIONER, backbone=BACKBONE, head=HEAD, latent_dim=LATENT_DIM
    ).model_copy(update=changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(config, perception_shapes=SHAPES)
        for parameter in generator.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return generator


def random_features(
    batch_size: int,
    num_ticks: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    are_flags_random: bool = True,
) -> FrameFeatures:
    """Features of plausible range; streams come and go when `are_flags_random`."""
    rng = torch.Generator().manual_seed(seed)
    bt = (batch_size, num_ticks)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*bt, *shape, generator=rng, dtype=torch.float64).to(dtype)

    boxes = uniform(SHAPES.max_boxes, len(BOX_FIELDS))
    boxes[..., BOX_FIELDS.index("azimuth")] = 1.5 * (0.5 - boxes[..., BOX_FIELDS.index("cx")])
    threshold = 0.3 if are_flags_random else -1.0
    return FrameFeatures(
        dino_BTND=2 * uniform(SHAPES.num_patches, SHAPES.dino_dim) - 1,
        depth_BTHW=uniform(*SHAPES.depth_grid),
        boxes_BTKF=boxes,
        class_BTK=torch.randint(SHAPES.num_classes, (*bt, SHAPES.max_boxes), generator=rng),
        box_mask_BTK=uniform(SHAPES.max_boxes) > 0.3,
        has_dino_BT=uniform() > threshold,
        has_depth_BT=uniform() > threshold,
        has_boxes_BT=uniform() > threshold,
        is_cut_BT=torch.zeros(bt, dtype=torch.bool),
    )
