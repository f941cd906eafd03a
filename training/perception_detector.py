"""Trains and scores the compact YOLO11: ultralytics' network and loss, our own small loop.

Legend: B pictures, K boxes, N anchors.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.yolo import YoloDetector, build_yolo11, import_ultralytics
from spatial_v2a.perception_config import DetectorSettings
from spatial_v2a.training.perception_boxes import DetectorBatch
from spatial_v2a.training.perception_data import LabelledFrame
from spatial_v2a.training.perception_loop import LoopSettings

SETTINGS = LoopSettings(learning_rate=2e-3, weight_decay=0.02)
# Gains of the box, class and distance losses: ultralytics' own defaults.
LOSS_GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def build_trainable(settings: DetectorSettings) -> nn.Module:
    """Compact YOLO11 for the sounding classes, with what its loss needs attached."""
    model: Any = build_yolo11(settings, num_classes=len(CLASS_NAMES))
    model.args = LOSS_GAINS
    # The published initial bias expects 640 x 640 pictures; ours hold fewer anchors.
    for level, head in enumerate(model.model[-1].cv3):
        anchors = settings.image_height * settings.image_width / float(model.stride[level]) ** 2
        nn.init.constant_(head[-1].bias, float(np.log(1.0 / len(CLASS_NAMES) / anchors)))
    model.requires_grad_(True)
    return model.to(memory_format=torch.channels_last)


class DetectorLoss:
    """ultralytics' v8DetectionLoss on our batches, per picture."""

    def __init__(self, model: nn.Module) -> None:
        loss_module: Any = import_ultralytics("ultralytics.utils.loss")
        self.criterion = loss_module.v8DetectionLoss(model)

    def __call__(self, model: nn.Module, batch: DetectorBatch) -> dict[str, Tensor]:
        """Box, class and distance losses."""
        predictions = model(batch.x_BCHW)
        targets = {
            "batch_idx": batch.index_K,
            "cls": batch.boxes_K5[:, :1],
            "bboxes": batch.boxes_K5[:, 1:],
        }
        total, _ = self.criterion(predictions, targets)
        return dict(zip(("box", "class", "distance"), total / len(batch.x_BCHW), strict=True))


def score_detector(
    settings: DetectorSettings, model: nn.Module, frames: list[LabelledFrame]
) -> dict[str, Any]:
    """Mean average precision over frames, by ultralytics' metric code.

    Returns:
        map50, map50_95, and ap50 per class name (classes that occur).
    """
    permissive = settings.model_copy(update={"score_threshold": 0.01})
    detector = YoloDetector(permissive, model, names=CLASS_NAMES)
    found = [detector.detect(torch.from_numpy(frame.image_HWC[None]))[0] for frame in frames]
    return score_detections(found, frames)


def score_detections(found: list[Detections], frames: list[LabelledFrame]) -> dict[str, Any]:
    """The scores of `score_detector` for given detections, one entry per frame."""
    hits, scores, labels, truths = [], [], [], []
    for detections, frame in zip(found, frames, strict=True):
        truth_K4 = _corners(frame.boxes_K5)
        hits.append(
            _matches(detections.corners_K4, detections.class_K, truth_K4, frame.boxes_K5[:, 0])
        )
        scores.append(detections.score_K)
        labels.append(detections.class_K)
        truths.append(frame.boxes_K5[:, 0])
    metrics: Any = import_ultralytics("ultralytics.utils.metrics")
    columns = [np.concatenate(x) for x in (hits, scores, labels, truths)]
    result = metrics.ap_per_class(*columns)
    ap_by_class, present = result[5], result[6].astype(int)
    return {
        "num_frames": len(frames),
        "num_boxes": int(sum(len(t) for t in truths)),
        "map50": float(ap_by_class[:, 0].mean()),
        "map50_95": float(ap_by_class.mean()),
        "ap50": {
            CLASS_NAMES[c]: round(float(ap[0]), 4)
            for c, ap in zip(present, ap_by_class, strict=True)
        },
    }


def _corners(boxes_K5: NDArray) -> NDArray:
    centre, half = boxes_K5[:, 1:3], boxes_K5[:, 3:5] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _matches(found_K4: NDArray, class_K: NDArray, truth_N4: NDArray, label_N: NDArray) -> NDArray:
    """True where a box is the best still free match of a truth of its class, per IoU threshold."""
    correct = np.zeros((len(found_K4), len(IOU_THRESHOLDS)), bool)
    if not len(found_K4) or not len(truth_N4):
        return correct
    iou_KN = box_iou(torch.from_numpy(found_K4), torch.from_numpy(truth_N4)).numpy()
    iou_KN = iou_KN * (class_K[:, None] == label_N[None, :])
    for column, threshold in enumerate(IOU_THRESHOLDS):
        is_free_N = np.ones(len(truth_N4), bool)
        for k, row in enumerate(iou_KN):
            best = int((row * is_free_N).argmax())
            if row[best] * is_free_N[best] >= threshold:
                correct[k, column] = True
                is_free_N[best] = False
    return correct
