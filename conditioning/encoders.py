"""DINOv2 (with registers) and Depth-Anything (V2): pictures in, patch features or nearness out.

Legend: B pictures, N patches (row-major), D width, H x W grid or pixels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spatial_v2a.bounded import read_json
from spatial_v2a.conditioning.frozen import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Deferred,
    FrozenEncoder,
    normalize_imagenet,
    resize_frames,
    settle_positions,
)
from spatial_v2a.conditioning.weights import (
    cached_repository,
    check_config,
    load_published,
    published_tensors,
)
from spatial_v2a.config import DepthSettings, DinoSettings
from spatial_v2a.errors import UserError
from spatial_v2a.geometry import nearness
from spatial_v2a.tensor_files import allowed_bytes, build_within, inside, load_into

if TYPE_CHECKING:
    from transformers import DepthAnythingForDepthEstimation, Dinov2WithRegistersModel


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


class TimmPatches(nn.Module):
    """A vision transformer of timm as a source of patch features.

    Args:
        vit: any with `forward_intermediates`, for pictures of one size.
        mean, std: of the pictures it was trained on, one number a colour, 0..1.
    """

    def __init__(self, vit: nn.Module, *, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.vit = vit
        # Pictures come normalised with ImageNet's mean and deviation.
        ours = torch.tensor((IMAGENET_MEAN, IMAGENET_STD)).view(2, 3, 1, 1)
        own = torch.tensor((mean, std)).view(2, 3, 1, 1)
        self.register_buffer("scale_311", ours[1] / own[1])
        self.register_buffer("shift_311", (ours[0] - own[0]) / own[1])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Patch features [B, N, D] of normalised pictures."""
        x_BCHW = x_BCHW * self.scale_311 + self.shift_311
        options = {"norm": True, "output_fmt": "NLC", "intermediates_only": True}
        return self.vit.forward_intermediates(x_BCHW, indices=1, **options)[-1]


def load_dino(settings: DinoSettings, folder: Path | None = None) -> nn.Module:
    """Published weights: those of `folder`, or `settings.source` as the hub's cache has it.

    They are those of a DINOv2 with registers as transformers writes it, or of a vision transformer
    as timm does (DINOv2, DINOv3 and others, repositories timm/NAME of the hub).
    """
    if folder is None:
        assert settings.source is not None
        folder = cached_repository(settings.source)
    data = read_json(inside(folder, "config.json"))
    if isinstance(data, dict) and "architecture" in data:
        return _load_timm(settings, folder, data)
    from transformers import Dinov2WithRegistersModel

    model = load_published(folder, {"dinov2_with_registers": Dinov2WithRegistersModel})
    _check_size(settings, folder, model.config.hidden_size, model.config.patch_size)
    return model


def _load_timm(settings: DinoSettings, folder: Path, data: dict[str, Any]) -> TimmPatches:
    import timm

    where, name = folder / "config.json", data["architecture"]
    # Other names than these timm would take for a place to fetch a network from.
    known = [n for part in ("vision_transformer", "eva") for n in timm.list_models(module=part)]
    if name not in known:
        raise UserError(f"{folder} is a {str(name)[:50]}; use a vision transformer of timm's")
    check_config(data, where=where)
    try:
        mean, std = ([float(x) for x in data["pretrained_cfg"][key]] for key in ("mean", "std"))
        is_usable = len(mean) == len(std) == 3 and min(std) > 0
    except (KeyError, TypeError, ValueError):
        is_usable = False
    if not is_usable:
        raise UserError(f"{where} has no mean and std of three colours; use another network")
    tensors = published_tensors(folder)
    vit = build_within(
        allowed_bytes(sum(tensor.numel() for tensor in tensors.values())),
        lambda: timm.create_model(name, pretrained=False, num_classes=data.get("num_classes", 0)),
        settings=str(where),
    )
    load_into(vit, tensors, where=folder)
    _check_size(settings, folder, vit.embed_dim, vit.patch_embed.patch_size[0])
    vit.set_input_size(img_size=(settings.image_height, settings.image_width))
    return TimmPatches(vit, mean=mean, std=std)


def _check_size(settings: DinoSettings, folder: Path, *found: int) -> None:
    if found != (settings.hidden_size, settings.patch_size):
        raise UserError(
            f"{folder} has width {found[0]} and patch {found[1]}; set "
            "perception.dino.hidden_size and patch_size to match"
        )


def patch_features(model: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Patch tokens [B, N, D] of normalised pictures, class and register tokens left out."""
    if isinstance(model, TimmPatches):
        return model(x_BCHW)
    tokens = model(x_BCHW).last_hidden_state
    return tokens[:, 1 + model.config.num_register_tokens :]


class DinoEncoder(FrozenEncoder):
    """Frozen DINOv2, or another vision transformer of its kind."""

    def __init__(self, settings: DinoSettings, model: nn.Module | Deferred) -> None:
        self.settings = settings
        super().__init__(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """See `FrozenEncoder`."""
        if not isinstance(model, TimmPatches):
            size = self.settings.image_height, self.settings.image_width
            settle_positions(model.embeddings, *size)
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


def build_depth(settings: DepthSettings) -> "DepthAnythingForDepthEstimation":
    """The compact metric network of `settings` with random weights."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
    )

    backbone = Dinov2Config(
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        image_size=max(settings.image_height, settings.image_width),
        patch_size=settings.patch_size,
        reshape_hidden_states=False,
        apply_layernorm=True,
        out_features=[f"stage{1 + i * settings.num_layers // 4}" for i in range(4)],
    )
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=settings.patch_size,
            reassemble_hidden_size=settings.hidden_size,
            reassemble_factors=[2, 1, 1, 0.5],
            neck_hidden_sizes=list(settings.neck_sizes),
            fusion_hidden_size=settings.fusion_size,
            head_hidden_size=settings.head_size,
            head_in_index=-1,
            depth_estimation_type="metric",
            max_depth=settings.max_depth_m,
        )
    )


def load_depth(
    settings: DepthSettings, folder: Path | None = None
) -> "DepthAnythingForDepthEstimation":
    """Published weights: those of `folder`, or `settings.source` as the hub's cache has it."""
    from transformers import DepthAnythingForDepthEstimation

    if folder is None:
        assert settings.source is not None
        folder = cached_repository(settings.source)
    return load_published(folder, {"depth_anything": DepthAnythingForDepthEstimation})


def nearness_of_prediction(predicted_BHW: Tensor, *, is_metric: bool) -> Tensor:
    """Nearness in [0, 1] from a network's output.

    Metric networks predict metres. Relative ones predict inverse depth of unknown scale: 1/2 is
    then put at each picture's mean, which no future frame can change.
    """
    if is_metric:
        return nearness(predicted_BHW)
    inverse_BHW = predicted_BHW.clamp_min(0.0)
    mean_B11 = inverse_BHW.mean(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    return inverse_BHW / (inverse_BHW + mean_B11)


class DepthEncoder(FrozenEncoder):
    """Frozen Depth-Anything."""

    def __init__(
        self, settings: DepthSettings, model: "DepthAnythingForDepthEstimation | Deferred"
    ) -> None:
        self.settings = settings
        super().__init__(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """See `FrozenEncoder`."""
        embeddings = model.backbone.embeddings
        settle_positions(embeddings, self.settings.image_height, self.settings.image_width)
        return model

    @property
    def is_metric(self) -> bool:
        """Whether the network predicts metres."""
        return self.model.config.depth_estimation_type == "metric"

    def example(self) -> Tensor:
        """One grey picture."""
        return torch.zeros(1, 3, self.settings.image_height, self.settings.image_width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Nearness grid [B, H, W] of normalised pictures."""
        predicted_BHW = self.model(x_BCHW).predicted_depth
        near_BHW = nearness_of_prediction(predicted_BHW, is_metric=self.is_metric)
        return functional.adaptive_avg_pool2d(near_BHW.unsqueeze(1), self.settings.grid)[:, 0]

    @torch.inference_mode()
    def encode(self, frames_BHWC: Tensor) -> Tensor:
        """Nearness grid [B, H, W] float32 in [0, 1] of uint8 RGB pictures [B, H, W, 3]."""
        x_BCHW = resize_frames(frames_BHWC, self.settings.image_height, self.settings.image_width)
        return self.run(normalize_imagenet(x_BCHW.to(self.device)))
