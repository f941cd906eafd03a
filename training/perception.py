"""Trains the compact encoders on Stage clips, on one core: a recipe each for the one loop.

DINOv2 learns what is seen and how near it is, patch by patch, by two linear heads that are thrown
away; Depth-Anything the engine's own depth; YOLO11 (ultralytics' network and loss) and RT-DETR
(transformers') the boxes.

Legend: B pictures, H x W pixels of a map, N patches or anchors, K boxes or classes, D width.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torchvision.ops import box_iou

from spatial_v2a.bounded import read_json
from spatial_v2a.concepts import CLASS_NAMES, NUM_CLASSES
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.encoders import build_depth, build_dino, patch_features
from spatial_v2a.conditioning.frozen import normalize_imagenet, resize_frames
from spatial_v2a.conditioning.rtdetr import RtDetrDetector, build_rtdetr
from spatial_v2a.conditioning.weights import read_weights, write_weights
from spatial_v2a.conditioning.yolo import YoloDetector, build_yolo11, import_ultralytics
from spatial_v2a.config import (
    BoxSettings,
    DepthSettings,
    DetectorSettings,
    DinoSettings,
    LoopTraining,
    PerceptionConfig,
    RtDetrSettings,
)
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text
from spatial_v2a.geometry import (
    BUFFER_OFFSET_STEPS,
    BUFFER_STEP_M,
    nearness_from_buffer,
    pool_grid,
)
from spatial_v2a.training.loop import Batch, Budget, Losses, Recipe, set_rate, train
from spatial_v2a.training.perception_data import FramePool, LabelledFrame, detector_batches

log = logging.getLogger(__name__)

Part = Literal["dino", "depth", "detector", "rtdetr"]
PARTS: tuple[Part, ...] = ("dino", "depth", "detector", "rtdetr")
DEFAULT_MINUTES = {"dino": 6.0, "depth": 8.0, "detector": 35.0, "rtdetr": 60.0}
FRAMES_PER_TRAIN_CLIP = 12
FRAMES_PER_VAL_CLIP = 8
SCORED_AT_ONCE = 24
MIN_PATCH_SHARE = 0.15
POSITIVE_WEIGHT = 4.0
DEPTH_TARGET = (30, 40)
# The buffer ends at 255 steps (sky and far walls): what lies beyond is no measurement.
FARTHEST_STEP = 250
# Gains of the box, class and distance losses: ultralytics' own defaults.
LOSS_GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def _loop(batch_size: int, learning_rate: float, **changes: float) -> LoopTraining:
    known = {"weight_decay": 0.02, "grad_clip": 5.0, "ema_decay": 0.998}
    known |= {"save_every": 250, "log_every": 50} | changes
    return LoopTraining(batch_size=batch_size, learning_rate=learning_rate, **known)


SETTINGS: dict[Part, LoopTraining] = {
    "dino": _loop(24, 1.5e-3),
    "depth": _loop(24, 1.5e-3),
    "detector": _loop(16, 2e-3),
    "rtdetr": _loop(16, 1e-3, weight_decay=1e-4, grad_clip=10.0),
}


@dataclass(frozen=True)
class Encoder:
    """How one encoder is taught and judged.

    Attributes:
        model: what is trained; `encoder` is the part of it that is kept.
        compute_loss: (model, batch) -> losses, whose sum is minimised.
        batches: (frames, random=, batch_size=) -> batches without end.
        score: (averaged model, frames) -> figures.
        encoder: what is kept of the model.
    """

    model: nn.Module
    compute_loss: Callable[[nn.Module, Batch], Losses]
    batches: Callable[..., Iterator[Batch]]
    score: Callable[[nn.Module, list[LabelledFrame]], dict[str, Any]]
    encoder: Callable[[Any], nn.Module] = lambda model: model


def make_encoder(part: Part, config: PerceptionConfig) -> Encoder:
    """A fresh encoder and its training."""
    if part == "dino":
        probe, feed = PatchProbe(config.dino), partial(dino_batches, settings=config.dino)
        score = partial(score_dino, config.dino)
        return Encoder(probe, dino_loss, feed, score, lambda model: model.encoder)
    if part == "depth":
        network, feed = depth_network(config.depth), partial(depth_batches, settings=config.depth)
        return Encoder(network, depth_loss, feed, partial(score_depth, config.depth))
    boxes = config.detector if part == "detector" else config.rtdetr
    network = yolo_network(boxes) if part == "detector" else rtdetr_network(boxes)
    compute_loss = YoloLoss(network) if part == "detector" else rtdetr_loss
    detector = YoloDetector if part == "detector" else RtDetrDetector
    feed = partial(detector_batches, settings=boxes)
    return Encoder(network, compute_loss, feed, partial(score_detector, detector, boxes))


class SummedLosses(nn.Module):
    """The objective of an encoder: the sum of its losses."""

    def __init__(
        self, model: nn.Module, compute_loss: Callable[[nn.Module, Batch], Losses]
    ) -> None:
        super().__init__()
        self.model = model
        self.compute_loss = compute_loss

    def forward(self, batch: Batch, *, step: int, rng: torch.Generator) -> Losses:
        """Losses of one batch."""
        del step, rng
        losses = self.compute_loss(self.model, batch)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def train_parts(
    parts: Sequence[Part],
    config: PerceptionConfig,
    data: list[Path],
    *,
    val: Path | None,
    out: Path,
    minutes: float | None,
    steps: int | None,
    **options: Any,
) -> None:
    """Trains encoders one after another on frames of the same clips; options as of `train_part`."""
    out.mkdir(parents=True, exist_ok=True)
    pool = FramePool(data, frames_per_clip=FRAMES_PER_TRAIN_CLIP)
    log.info("%d frames of %d clips", len(pool.frames), pool.num_clips)
    for part in parts:
        budget = Budget(steps, None if steps else minutes or DEFAULT_MINUTES[part])
        train_part(part, config, pool=pool, val=val, out=out, budget=budget, **options)


def train_part(
    part: Part,
    config: PerceptionConfig,
    *,
    pool: FramePool,
    val: Path | None,
    out: Path,
    budget: Budget,
    seed: int,
    batch_size: int | None = None,
    init: Path | None = None,
    learning_rate: float | None = None,
) -> None:
    """Trains one encoder, scores it and adds it to the checkpoint of the run folder.

    Args:
        part, config: which one.
        pool: frames to train on.
        val: folder of shards to score on.
        out: run folder; states lie in `out/part`.
        budget: when it ends.
        seed: of weights and batches.
        batch_size, learning_rate: instead of the encoder's own.
        init: checkpoint folder whose weights are the start.
    """
    if (out / f"{part}.state.safetensors").exists():
        raise UserError(f"{out} holds a run of an earlier release; choose another --out")
    changes = {"seed": seed, "batch_size": batch_size, "learning_rate": learning_rate}
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = SETTINGS[part].model_copy(update=changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        taught = make_encoder(part, config)
    model, folder = taught.model, out / "checkpoint"
    if init is not None:
        read_weights(init, part, taught.encoder(model))
    log.info("%s: %d parameters", part, sum(p.numel() for p in model.parameters()))
    set_seed(seed)
    averaged = []

    def export(module: nn.Module) -> None:
        averaged[:] = [module]
        write_weights(folder, part, taught.encoder(module))

    recipe = Recipe(
        name=part,
        objective=SummedLosses(model, taught.compute_loss),
        batches=lambda start, process: taught.batches(
            pool,
            random=np.random.default_rng([seed, start]),
            batch_size=settings.batch_size,
        ),
        settings=settings,
        budget=budget,
        optimizer=matrices_decay(model, settings),
        schedule=lambda optimizer, _, share: set_rate(
            optimizer, rate_at(share, settings.learning_rate)
        ),
        averaged=lambda objective: objective.model,
        export=export,
    )
    figures = train(recipe, out / part)
    log.info("%s: %s", part, figures)
    metrics: dict[str, Any] = {"train_frames": len(pool.frames), "train_clips": pool.num_clips}
    if val is not None and any(val.rglob("*.tar")):
        frames = FramePool([val], frames_per_clip=FRAMES_PER_VAL_CLIP).frames
        metrics |= taught.score(averaged[0], frames)
    path = folder / "perception_metrics.json"
    known = read_json(path) if path.is_file() else {}
    write_text(path, json.dumps(known | {part: figures | metrics}, indent=2) + "\n")
    log.info("%s: %s", part, json.dumps(metrics))


def matrices_decay(model: nn.Module, settings: LoopTraining) -> AdamW:
    """AdamW with weight decay on matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return AdamW(groups, betas=(0.9, 0.99), **options)


def rate_at(progress: float, highest: float) -> float:
    """Warm-up over 4 % of the budget, then a cosine down to 2 % of the highest rate."""
    if progress < 0.04:
        return highest * (0.01 + 0.99 * progress / 0.04)
    return highest * (0.02 + (1 - 0.02) * (1 + math.cos(math.pi * progress)) / 2)


class PatchProbe(nn.Module):
    """The encoder with its two heads: class logits [B, N, K] and nearness [B, N]."""

    def __init__(self, settings: DinoSettings) -> None:
        super().__init__()
        self.encoder = build_dino(settings)
        self.heads = nn.Linear(settings.hidden_size, NUM_CLASSES + 1)
        nn.init.constant_(self.heads.bias, -4.0)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and nearness of normalised pictures."""
        out_BNK = self.heads(patch_features(self.encoder, x_BCHW))
        return out_BNK[..., :-1], out_BNK[..., -1].sigmoid()


def patch_classes(boxes_K5: NDArray, grid: tuple[int, int]) -> NDArray:
    """Which classes cover at least MIN_PATCH_SHARE of each patch, [N, classes] 0 or 1.

    A box smaller than that in every patch marks the patch of its centre.
    """
    rows, columns = grid
    target = np.zeros((rows, columns, NUM_CLASSES), np.float32)
    y, x = np.arange(rows), np.arange(columns)
    for label, cx, cy, w, h in boxes_K5:
        top, bottom = (cy - h / 2) * rows, (cy + h / 2) * rows
        left, right = (cx - w / 2) * columns, (cx + w / 2) * columns
        inside_y = np.clip(np.minimum(y + 1, bottom) - np.maximum(y, top), 0, 1)
        inside_x = np.clip(np.minimum(x + 1, right) - np.maximum(x, left), 0, 1)
        covered = np.outer(inside_y, inside_x) >= MIN_PATCH_SHARE
        covered[min(int(cy * rows), rows - 1), min(int(cx * columns), columns - 1)] = True
        target[..., int(label)] = np.maximum(target[..., int(label)], covered)
    return target.reshape(rows * columns, NUM_CLASSES)


def dino_batch(frames: list[LabelledFrame], settings: DinoSettings) -> Batch:
    """Pictures [B, 3, H, W], patch classes [B, N, K] as 0 or 1, patch nearness [B, N]."""
    rows, columns = settings.grid
    images_BHWC = torch.from_numpy(np.stack([f.image_HWC for f in frames]))
    x_BCHW = resize_frames(images_BHWC, settings.image_height, settings.image_width)
    near_BHW = nearness_from_buffer(np.stack([f.depth_HW for f in frames]))
    near_BHW = pool_grid(near_BHW, (rows, columns)).astype(np.float32)
    target_BNK = np.stack([patch_classes(f.boxes_K5, settings.grid) for f in frames])
    return {
        "x_BCHW": normalize_imagenet(x_BCHW),
        "target_BNK": torch.from_numpy(target_BNK),
        "near_BN": torch.from_numpy(near_BHW).flatten(1),
    }


def dino_batches(
    pool: FramePool,
    settings: DinoSettings,
    *,
    random: np.random.Generator,
    batch_size: int,
) -> Iterator[Batch]:
    """Endless batches, mirrored half the time, with changes of brightness."""
    columns = settings.grid[1]
    weights = pool.weights()
    while True:
        if pool.refresh_if_due():
            weights = pool.weights()
        picks = random.choice(len(pool.frames), size=batch_size, p=weights)
        batch = dino_batch([pool.frames[i] for i in picks], settings)
        is_flipped_B = torch.from_numpy(random.random(batch_size) < 0.5)
        gain_B = torch.from_numpy(random.uniform(0.8, 1.25, batch_size).astype(np.float32))
        x_BCHW = batch["x_BCHW"] * gain_B.view(-1, 1, 1, 1)
        target_BYXK = batch["target_BNK"].unflatten(1, (-1, columns))
        near_BYX = batch["near_BN"].unflatten(1, (-1, columns))
        is_flipped_B111 = is_flipped_B.view(-1, 1, 1, 1)
        target_BYXK = torch.where(is_flipped_B111, target_BYXK.flip(2), target_BYXK)
        near_BYX = torch.where(is_flipped_B.view(-1, 1, 1), near_BYX.flip(2), near_BYX)
        yield {
            "x_BCHW": torch.where(is_flipped_B111, x_BCHW.flip(3), x_BCHW),
            "target_BNK": target_BYXK.flatten(1, 2),
            "near_BN": near_BYX.flatten(1),
        }


def dino_loss(model: nn.Module, batch: Batch) -> Losses:
    """Binary cross entropy of the patch classes (present ones weigh more) and L1 of nearness."""
    logits_BNK, near_BN = model(batch["x_BCHW"])
    weight = torch.tensor(POSITIVE_WEIGHT)
    entropy = functional.binary_cross_entropy_with_logits(
        logits_BNK, batch["target_BNK"], pos_weight=weight, reduction="sum"
    )
    present = batch["target_BNK"].sum().clamp_min(1.0)
    return {
        "class": 0.3 * entropy / present,
        "near": 3.0 * (near_BN - batch["near_BN"]).abs().mean(),
    }


@torch.inference_mode()
def score_dino(
    settings: DinoSettings, model: nn.Module, frames: list[LabelledFrame]
) -> dict[str, float | int | dict[str, float]]:
    """Average precision per class over patches, accuracy on patches with one class, nearness L1."""
    model.eval()
    scores, targets, near_error = [], [], 0.0
    for first in range(0, len(frames), SCORED_AT_ONCE):
        batch = dino_batch(frames[first : first + SCORED_AT_ONCE], settings)
        logits_BNK, near_BN = model(batch["x_BCHW"])
        scores.append(logits_BNK.flatten(0, 1))
        targets.append(batch["target_BNK"].flatten(0, 1))
        near_error += float((near_BN - batch["near_BN"]).abs().mean()) * len(batch["x_BCHW"])
    score_NK, target_NK = torch.cat(scores).numpy(), torch.cat(targets).numpy()
    precision = {
        name: round(average_precision(score_NK[:, k], target_NK[:, k] > 0), 4)
        for k, name in enumerate(CLASS_NAMES)
        if target_NK[:, k].any()
    }
    single_N = target_NK.sum(axis=1) == 1
    right = score_NK[single_N].argmax(axis=1) == target_NK[single_N].argmax(axis=1)
    return {
        "num_frames": len(frames),
        "patch_map": float(np.mean(list(precision.values()))),
        "patch_accuracy": float(right.mean()),
        "nearness_l1": near_error / len(frames),
        "patch_ap": precision,
    }


def average_precision(score_N: NDArray, is_true_N: NDArray) -> float:
    """Mean of the precision at the rank of every true item."""
    ranked = is_true_N[np.argsort(-score_N, kind="stable")]
    precision_N = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision_N[ranked].mean())


def depth_network(settings: DepthSettings) -> nn.Module:
    """Compact network; its last bias begins at a depth of about 8 m."""
    model = build_depth(settings)
    nn.init.constant_(model.head.conv3.bias, float(np.log(8.0 / (settings.max_depth_m - 8.0))))
    return model


def depth_target(depth_BHW: Tensor) -> Tensor:
    """Metres [B, 30, 40] from uint8 buffers [B, 60, 80]; infinite where the buffer ended."""
    steps_BHW = depth_BHW.float()
    far_BHW = torch.where(steps_BHW >= FARTHEST_STEP, float("inf"), 0.0)
    metres_BHW = (steps_BHW + BUFFER_OFFSET_STEPS) * BUFFER_STEP_M + far_BHW
    return functional.avg_pool2d(metres_BHW.unsqueeze(1), 2)[:, 0]


def depth_batch(frames: list[LabelledFrame], settings: DepthSettings) -> Batch:
    """Pictures [B, 3, H, W] and metric depth [B, 30, 40]; invalid where not finite."""
    images_BHWC = torch.from_numpy(np.stack([f.image_HWC for f in frames]))
    depth_BHW = torch.from_numpy(np.stack([f.depth_HW for f in frames]))
    x_BCHW = resize_frames(images_BHWC, settings.image_height, settings.image_width)
    return {"x_BCHW": normalize_imagenet(x_BCHW), "depth_BHW": depth_target(depth_BHW)}


def depth_batches(
    pool: FramePool,
    settings: DepthSettings,
    *,
    random: np.random.Generator,
    batch_size: int,
) -> Iterator[Batch]:
    """Endless batches, mirrored half the time, with changes of brightness."""
    while True:
        pool.refresh_if_due()
        picks = random.integers(len(pool.frames), size=batch_size)
        batch = depth_batch([pool.frames[i] for i in picks], settings)
        is_flipped_B = torch.from_numpy(random.random(batch_size) < 0.5)
        gain_B = torch.from_numpy(random.uniform(0.8, 1.25, batch_size).astype(np.float32))
        shift_B = torch.from_numpy(random.uniform(-0.3, 0.3, batch_size).astype(np.float32))
        x_BCHW = batch["x_BCHW"] * gain_B.view(-1, 1, 1, 1) + shift_B.view(-1, 1, 1, 1)
        depth_BHW = batch["depth_BHW"]
        yield {
            "x_BCHW": torch.where(is_flipped_B.view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW),
            "depth_BHW": torch.where(is_flipped_B.view(-1, 1, 1), depth_BHW.flip(2), depth_BHW),
        }


def depth_loss(model: nn.Module, batch: Batch) -> Losses:
    """L1 in log depth plus half of its scale-invariant part (Eigen et al. 2014, eq. 4)."""
    error_BHW, valid_BHW = _log_error(model, batch)
    count_B = valid_BHW.sum(dim=(1, 2)).clamp_min(1)
    mean_B = error_BHW.sum(dim=(1, 2)) / count_B
    centred_BHW = (error_BHW - mean_B.view(-1, 1, 1)) * valid_BHW
    return {
        "log_l1": error_BHW.abs().sum() / count_B.sum(),
        "invariant": 0.5 * (centred_BHW.square().sum(dim=(1, 2)) / count_B).mean(),
    }


def _log_error(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    predicted_BHW = model(batch["x_BCHW"]).predicted_depth
    predicted_BHW = functional.adaptive_avg_pool2d(predicted_BHW.unsqueeze(1), DEPTH_TARGET)[:, 0]
    valid_BHW = batch["depth_BHW"].isfinite()
    target_BHW = torch.where(valid_BHW, batch["depth_BHW"], 1.0)
    error_BHW = predicted_BHW.clamp_min(1e-3).log() - target_BHW.log()
    return error_BHW * valid_BHW, valid_BHW


@torch.inference_mode()
def score_depth(
    settings: DepthSettings, model: nn.Module, frames: list[LabelledFrame]
) -> dict[str, float]:
    """delta1 (share within a factor of 1.25) and the mean absolute log error, per pixel."""
    model.eval()
    within, absolute, count = 0.0, 0.0, 0
    for first in range(0, len(frames), SCORED_AT_ONCE):
        batch = depth_batch(frames[first : first + SCORED_AT_ONCE], settings)
        error_BHW, valid_BHW = _log_error(model, batch)
        within += float(((error_BHW.abs() < np.log(1.25)) & valid_BHW).sum())
        absolute += float(error_BHW.abs().sum())
        count += int(valid_BHW.sum())
    return {
        "num_frames": len(frames),
        "delta1": within / max(count, 1),
        "abs_log_error": absolute / max(count, 1),
    }


def yolo_network(settings: DetectorSettings) -> nn.Module:
    """Compact YOLO11 for the sounding classes, with what its loss needs attached."""
    model: Any = build_yolo11(settings, num_classes=len(CLASS_NAMES))
    model.args = LOSS_GAINS
    # The published initial bias expects 640 x 640 pictures; ours hold fewer anchors.
    for level, head in enumerate(model.model[-1].cv3):
        anchors = settings.image_height * settings.image_width / float(model.stride[level]) ** 2
        nn.init.constant_(head[-1].bias, float(np.log(1.0 / len(CLASS_NAMES) / anchors)))
    model.requires_grad_(True)
    return model.to(memory_format=torch.channels_last)


class YoloLoss:
    """ultralytics' v8DetectionLoss on our batches, per picture."""

    def __init__(self, model: nn.Module) -> None:
        loss_module: Any = import_ultralytics("ultralytics.utils.loss")
        self.criterion = loss_module.v8DetectionLoss(model)

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        """Box, class and distance losses."""
        predictions = model(batch["x_BCHW"])
        targets = {
            "batch_idx": batch["index_K"],
            "cls": batch["boxes_K5"][:, :1],
            "bboxes": batch["boxes_K5"][:, 1:],
        }
        total, _ = self.criterion(predictions, targets)
        return dict(zip(("box", "class", "distance"), total / len(batch["x_BCHW"]), strict=True))


def rtdetr_network(settings: RtDetrSettings) -> nn.Module:
    """Compact RT-DETR for the sounding classes."""
    model = build_rtdetr(settings, num_classes=len(CLASS_NAMES))
    return model.to(memory_format=torch.channels_last)


def rtdetr_loss(model: nn.Module, batch: Batch) -> Losses:
    """Class, box and overlap losses, each with those of the earlier layers and of denoising."""
    is_of_B = [batch["index_K"] == number for number in range(len(batch["x_BCHW"]))]
    labels = [
        {"class_labels": batch["boxes_K5"][is_of, 0].long(), "boxes": batch["boxes_K5"][is_of, 1:]}
        for is_of in is_of_B
    ]
    found = model(pixel_values=batch["x_BCHW"], labels=labels)
    sums: dict[str, Tensor] = {}
    for name, value in found.loss_dict.items():
        kind = name.split("_")[1]
        sums[kind] = sums.get(kind, 0) + value
    return sums


def score_detector(
    detector: type[YoloDetector | RtDetrDetector],
    settings: BoxSettings,
    model: nn.Module,
    frames: list[LabelledFrame],
) -> dict[str, Any]:
    """Mean average precision over frames, by ultralytics' metric code.

    Returns:
        map50, map50_95, and ap50 per class name (classes that occur).
    """
    permissive = settings.model_copy(update={"score_threshold": 0.01})
    judged = detector(permissive, model, names=CLASS_NAMES)
    found = [judged.detect(torch.from_numpy(frame.image_HWC[None]))[0] for frame in frames]
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
