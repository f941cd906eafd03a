"""Trains and scores the compact Depth-Anything on the engine's own depth.

Legend: B pictures, H x W pixels of the target map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spatial_v2a.conditioning.encoders import build_depth
from spatial_v2a.conditioning.frozen import normalize_imagenet, resize_frames
from spatial_v2a.geometry import BUFFER_OFFSET_STEPS, BUFFER_STEP_M
from spatial_v2a.perception_config import DepthSettings
from spatial_v2a.training.perception_data import FramePool, LabelledFrame
from spatial_v2a.training.perception_loop import LoopSettings

BATCH_SIZE = 24
SETTINGS = LoopSettings(learning_rate=1.5e-3, weight_decay=0.02)
TARGET_HEIGHT, TARGET_WIDTH = 30, 40
# The buffer ends at 255 steps (sky and far walls): what lies beyond is no measurement.
FARTHEST_STEP = 250


@dataclass
class DepthBatch:
    """Normalised pictures [B, 3, H, W] and metric depth [B, 30, 40]; invalid where not finite."""

    x_BCHW: Tensor
    depth_BHW: Tensor


def build_trainable(settings: DepthSettings) -> nn.Module:
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


def depth_batch(frames: list[LabelledFrame], settings: DepthSettings) -> DepthBatch:
    """Stacks frames as they are."""
    images_BHWC = torch.from_numpy(np.stack([f.image_HWC for f in frames]))
    depth_BHW = torch.from_numpy(np.stack([f.depth_HW for f in frames]))
    x_BCHW = resize_frames(images_BHWC, settings.image_height, settings.image_width)
    return DepthBatch(normalize_imagenet(x_BCHW), depth_target(depth_BHW))


def depth_batches(
    pool: FramePool,
    settings: DepthSettings,
    *,
    random: np.random.Generator,
    batch_size: int = BATCH_SIZE,
) -> Iterator[DepthBatch]:
    """Endless batches, mirrored half the time, with changes of brightness."""
    while True:
        pool.refresh_if_due()
        picks = random.integers(len(pool.frames), size=batch_size)
        batch = depth_batch([pool.frames[i] for i in picks], settings)
        is_flipped_B = torch.from_numpy(random.random(batch_size) < 0.5)
        gain_B = torch.from_numpy(random.uniform(0.8, 1.25, batch_size).astype(np.float32))
        shift_B = torch.from_numpy(random.uniform(-0.3, 0.3, batch_size).astype(np.float32))
        x_BCHW = batch.x_BCHW * gain_B.view(-1, 1, 1, 1) + shift_B.view(-1, 1, 1, 1)
        yield DepthBatch(
            torch.where(is_flipped_B.view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW),
            torch.where(is_flipped_B.view(-1, 1, 1), batch.depth_BHW.flip(2), batch.depth_BHW),
        )


def depth_loss(model: nn.Module, batch: DepthBatch) -> dict[str, Tensor]:
    """L1 in log depth plus half of its scale-invariant part (Eigen et al. 2014, eq. 4)."""
    error_BHW, valid_BHW = _log_error(model, batch)
    count_B = valid_BHW.sum(dim=(1, 2)).clamp_min(1)
    mean_B = error_BHW.sum(dim=(1, 2)) / count_B
    centred_BHW = (error_BHW - mean_B.view(-1, 1, 1)) * valid_BHW
    return {
        "log_l1": error_BHW.abs().sum() / count_B.sum(),
        "invariant": 0.5 * (centred_BHW.square().sum(dim=(1, 2)) / count_B).mean(),
    }


def _log_error(model: nn.Module, batch: DepthBatch) -> tuple[Tensor, Tensor]:
    predicted_BHW = model(batch.x_BCHW).predicted_depth
    predicted_BHW = functional.adaptive_avg_pool2d(
        predicted_BHW.unsqueeze(1), (TARGET_HEIGHT, TARGET_WIDTH)
    )[:, 0]
    valid_BHW = batch.depth_BHW.isfinite()
    target_BHW = torch.where(valid_BHW, batch.depth_BHW, 1.0)
    error_BHW = predicted_BHW.clamp_min(1e-3).log() - target_BHW.log()
    return error_BHW * valid_BHW, valid_BHW


@torch.inference_mode()
def score_depth(
    settings: DepthSettings, model: nn.Module, frames: list[LabelledFrame]
) -> dict[str, float]:
    """delta1 (share within a factor of 1.25) and the mean absolute log error, per pixel."""
    model.eval()
    within, absolute, count = 0.0, 0.0, 0
    for first in range(0, len(frames), BATCH_SIZE):
        batch = depth_batch(frames[first : first + BATCH_SIZE], settings)
        error_BHW, valid_BHW = _log_error(model, batch)
        within += float(((error_BHW.abs() < np.log(1.25)) & valid_BHW).sum())
        absolute += float(error_BHW.abs().sum())
        count += int(valid_BHW.sum())
    return {
        "num_frames": len(frames),
        "delta1": within / max(count, 1),
        "abs_log_error": absolute / max(count, 1),
    }
