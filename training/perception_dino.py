"""Trains and scores the compact DINOv2: what is seen and how near it is, patch by patch.

The two linear heads that ask these questions are thrown away; the features stay.
Legend: B pictures, N patches, K classes, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spatial_v2a.concepts import CLASS_NAMES, NUM_CLASSES
from spatial_v2a.conditioning.encoders import build_dino, patch_features
from spatial_v2a.conditioning.frozen import normalize_imagenet, resize_frames
from spatial_v2a.geometry import nearness_from_buffer, pool_grid
from spatial_v2a.perception_config import DinoSettings
from spatial_v2a.training.perception_data import FramePool, LabelledFrame
from spatial_v2a.training.perception_loop import LoopSettings

BATCH_SIZE = 24
SETTINGS = LoopSettings(learning_rate=1.5e-3, weight_decay=0.02)
MIN_PATCH_SHARE = 0.15
POSITIVE_WEIGHT = 4.0


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


@dataclass
class DinoBatch:
    """Pictures [B, 3, H, W], patch classes [B, N, K] as 0 or 1, patch nearness [B, N]."""

    x_BCHW: Tensor
    target_BNK: Tensor
    near_BN: Tensor


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


def dino_batch(frames: list[LabelledFrame], settings: DinoSettings) -> DinoBatch:
    """Stacks frames as they are."""
    rows, columns = settings.grid
    images_BHWC = torch.from_numpy(np.stack([f.image_HWC for f in frames]))
    x_BCHW = resize_frames(images_BHWC, settings.image_height, settings.image_width)
    near_BHW = nearness_from_buffer(np.stack([f.depth_HW for f in frames]))
    near_BHW = pool_grid(near_BHW, (rows, columns)).astype(np.float32)
    target_BNK = np.stack([patch_classes(f.boxes_K5, settings.grid) for f in frames])
    return DinoBatch(
        normalize_imagenet(x_BCHW),
        torch.from_numpy(target_BNK),
        torch.from_numpy(near_BHW).flatten(1),
    )


def dino_batches(
    pool: FramePool,
    settings: DinoSettings,
    *,
    random: np.random.Generator,
    batch_size: int = BATCH_SIZE,
) -> Iterator[DinoBatch]:
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
        x_BCHW = batch.x_BCHW * gain_B.view(-1, 1, 1, 1)
        target_BYXK = batch.target_BNK.unflatten(1, (-1, columns))
        near_BYX = batch.near_BN.unflatten(1, (-1, columns))
        is_flipped_B111 = is_flipped_B.view(-1, 1, 1, 1)
        yield DinoBatch(
            torch.where(is_flipped_B111, x_BCHW.flip(3), x_BCHW),
            torch.where(is_flipped_B111, target_BYXK.flip(2), target_BYXK).flatten(1, 2),
            torch.where(is_flipped_B.view(-1, 1, 1), near_BYX.flip(2), near_BYX).flatten(1),
        )


def dino_loss(model: nn.Module, batch: DinoBatch) -> dict[str, Tensor]:
    """Binary cross entropy of the patch classes (present ones weigh more) and L1 of nearness."""
    logits_BNK, near_BN = model(batch.x_BCHW)
    weight = torch.tensor(POSITIVE_WEIGHT)
    entropy = functional.binary_cross_entropy_with_logits(
        logits_BNK, batch.target_BNK, pos_weight=weight, reduction="sum"
    )
    present = batch.target_BNK.sum().clamp_min(1.0)
    return {"class": 0.3 * entropy / present, "near": 3.0 * (near_BN - batch.near_BN).abs().mean()}


@torch.inference_mode()
def score_dino(
    settings: DinoSettings, model: nn.Module, frames: list[LabelledFrame]
) -> dict[str, float | int | dict[str, float]]:
    """Average precision per class over patches, accuracy on patches with one class, nearness L1."""
    model.eval()
    scores, targets, near_error = [], [], 0.0
    for first in range(0, len(frames), BATCH_SIZE):
        batch = dino_batch(frames[first : first + BATCH_SIZE], settings)
        logits_BNK, near_BN = model(batch.x_BCHW)
        scores.append(logits_BNK.flatten(0, 1))
        targets.append(batch.target_BNK.flatten(0, 1))
        near_error += float((near_BN - batch.near_BN).abs().mean()) * len(batch.x_BCHW)
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
