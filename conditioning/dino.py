"""DINOv2 (with registers) adapter: pictures in, one feature vector per patch out.

Legend: B pictures, N patches (row-major), D width.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spatial_v2a.conditioning.frozen import (
    Deferred,
    FrozenEncoder,
    normalize_imagenet,
    resize_frames,
    settle_positions,
)
from spatial_v2a.conditioning.hub import cached_repository, load_published
from spatial_v2a.errors import UserError
from spatial_v2a.perception_config import DinoSettings

if TYPE_CHECKING:
    from transformers import Dinov2WithRegistersModel


def build_dino(settings: DinoSettings) -> "Dinov2WithRegistersModel":
    """The compact encoder of `settings` with random weights."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_register_tokens=settings.num_registers,
            image_size=max(settings.image_height, settings.image_width),
            patch_size=settings.patch_size,
        )
    )


def load_dino(settings: DinoSettings, folder: Path | None = None) -> "Dinov2WithRegistersModel":
    """Published weights: those of `folder`, or `settings.source` as the hub's cache has it."""
    from transformers import Dinov2WithRegistersModel

    if folder is None:
        assert settings.source is not None
        folder = cached_repository(settings.source)
    model = load_published(folder, {"dinov2_with_registers": Dinov2WithRegistersModel})
    found = (model.config.hidden_size, model.config.patch_size)
    if found != (settings.hidden_size, settings.patch_size):
        raise UserError(
            f"{folder} has width {found[0]} and patch {found[1]}; set "
            "perception.dino.hidden_size and patch_size to match"
        )
    return model


def patch_features(model: "Dinov2WithRegistersModel", x_BCHW: Tensor) -> Tensor:
    """Patch tokens [B, N, D] of normalised pictures, class and register tokens left out."""
    tokens = model(x_BCHW).last_hidden_state
    return tokens[:, 1 + model.config.num_register_tokens :]


class DinoEncoder(FrozenEncoder):
    """Frozen DINOv2."""

    def __init__(
        self, settings: DinoSettings, model: "Dinov2WithRegistersModel | Deferred"
    ) -> None:
        self.settings = settings
        super().__init__(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """See `FrozenEncoder`."""
        settle_positions(model.embeddings, self.settings.image_height, self.settings.image_width)
        return model

    def example(self) -> Tensor:
        """One grey picture."""
        return torch.zeros(1, 3, self.settings.image_height, self.settings.image_width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Patch features [B, N, D] of normalised pictures."""
        return patch_features(self.model, x_BCHW)

    @torch.inference_mode()
    def encode(self, frames_BHWC: Tensor) -> Tensor:
        """Patch features [B, N, D] float32 of uint8 RGB pictures [B, H, W, 3]."""
        x_BCHW = resize_frames(frames_BHWC, self.settings.image_height, self.settings.image_width)
        return self.run(normalize_imagenet(x_BCHW.to(self.device)))
