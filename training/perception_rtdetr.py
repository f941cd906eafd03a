"""Trains the compact RT-DETR: transformers' network and loss, the detector's own pictures.

Legend: B pictures, K boxes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.conditioning.rtdetr import RtDetrDetector, build_rtdetr
from spatial_v2a.perception_config import RtDetrSettings
from spatial_v2a.training.perception_boxes import DetectorBatch
from spatial_v2a.training.perception_data import LabelledFrame
from spatial_v2a.training.perception_detector import score_detections
from spatial_v2a.training.perception_loop import LoopSettings

SETTINGS = LoopSettings(learning_rate=1e-3, weight_decay=1e-4, gradient_clip=10.0)


def build_trainable(settings: RtDetrSettings) -> nn.Module:
    """Compact RT-DETR for the sounding classes."""
    model = build_rtdetr(settings, num_classes=len(CLASS_NAMES))
    return model.to(memory_format=torch.channels_last)


def rtdetr_loss(model: nn.Module, batch: DetectorBatch) -> dict[str, Tensor]:
    """Class, box and overlap losses, each with those of the earlier layers and of denoising."""
    is_of_B = [batch.index_K == number for number in range(len(batch.x_BCHW))]
    labels = [
        {"class_labels": batch.boxes_K5[is_of, 0].long(), "boxes": batch.boxes_K5[is_of, 1:]}
        for is_of in is_of_B
    ]
    found = model(pixel_values=batch.x_BCHW, labels=labels)
    sums: dict[str, Tensor] = {}
    for name, value in found.loss_dict.items():
        kind = name.split("_")[1]
        sums[kind] = sums.get(kind, 0) + value
    return sums


def score_rtdetr(
    settings: RtDetrSettings, model: nn.Module, frames: list[LabelledFrame]
) -> dict[str, Any]:
    """Mean average precision over frames, by the same code as of the other detector."""
    permissive = settings.model_copy(update={"score_threshold": 0.01})
    detector = RtDetrDetector(permissive, model, names=CLASS_NAMES)
    found = [detector.detect(torch.from_numpy(frame.image_HWC[None]))[0] for frame in frames]
    return score_detections(found, frames)
