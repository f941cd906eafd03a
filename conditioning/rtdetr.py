"""RT-DETR adapter: pictures in, scored boxes out, by networks of transformers (Apache-2.0).

The detector of a permissive licence (Zhao et al. 2023, arXiv 2304.08069). Nothing here or in its
training touches ultralytics.
Legend: B pictures, Q queries.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatial_v2a.conditioning.detections import BoxDetector
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.conditioning.weights import load_published
from spatial_v2a.config import RtDetrSettings
from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from transformers import RTDetrForObjectDetection

LOSS_TYPE = "RTDetrForObjectDetection"
STRIDES = [8, 16, 32]


def build_rtdetr(settings: RtDetrSettings, *, num_classes: int) -> "RTDetrForObjectDetection":
    """The compact RT-DETR of `settings` with random weights."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    width, widths = settings.hidden_size, list(settings.backbone_widths)
    backbone = RTDetrResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=list(settings.backbone_depths),
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_in_channels=widths[1:],
            feat_strides=STRIDES,
            encoder_hidden_dim=width,
            encoder_layers=1,
            encoder_ffn_dim=2 * width,
            encoder_attention_heads=settings.num_heads,
            hidden_expansion=0.5,
            d_model=width,
            decoder_in_channels=[width] * len(STRIDES),
            decoder_layers=settings.num_decoder_layers,
            decoder_ffn_dim=2 * width,
            decoder_attention_heads=settings.num_heads,
            num_queries=settings.num_queries,
            num_denoising=settings.num_queries,
            # Frozen ones are for a backbone that comes trained.
            freeze_backbone_batch_norms=False,
            num_labels=num_classes,
        )
    )


def load_published_rtdetr(folder: str | Path) -> nn.Module:
    """RT-DETR, RT-DETRv2 or D-FINE as transformers has written it into a folder.

    Raises:
        UserError: it cannot be loaded, or is another kind of network.
    """
    from transformers import (
        DFineForObjectDetection,
        RTDetrForObjectDetection,
        RTDetrV2ForObjectDetection,
    )

    published = {
        "rt_detr": RTDetrForObjectDetection,
        "rt_detr_v2": RTDetrV2ForObjectDetection,
        "d_fine": DFineForObjectDetection,
    }
    return load_published(Path(folder), published)


class RtDetrDetector(BoxDetector):
    """Frozen RT-DETR.

    Args:
        settings: input size and thresholds.
        model: RTDetrForObjectDetection or one of its successors, with its weights.
        names: one for each class that the weights know, in their order.
    """

    def __init__(
        self, settings: RtDetrSettings, model: nn.Module | Deferred, *, names: tuple[str, ...]
    ) -> None:
        self.settings, self.names = settings, names
        super().__init__(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """See `FrozenEncoder`."""
        known: Any = model.config.num_labels
        if known != len(self.names):
            vocabulary = self.settings.vocabulary
            raise UserError(
                f"the detector knows {known} classes, vocabulary {vocabulary!r} has "
                f"{len(self.names)}; set perception.rtdetr.vocabulary to match the weights"
            )
        for part in model.modules():
            # The tracer asks every part for its loss, and transformers warns where there is none.
            if getattr(part, "loss_type", "") is None:
                part.loss_type = LOSS_TYPE
        return model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Boxes and class scores [B, 4 + classes, Q] of pictures in 0..1, boxes in input pixels."""
        found = self.model(pixel_values=x_BCHW)
        height, width = x_BCHW.shape[-2:]
        size_4 = x_BCHW.new_tensor([width, height, width, height])
        return torch.cat([found.pred_boxes * size_4, found.logits.sigmoid()], dim=-1).transpose(
            1, 2
        )
