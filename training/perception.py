"""Trains the compact encoders on Stage clips, on one core: a recipe for each, one loop for all."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from spatial_v2a.bounded import read_json
from spatial_v2a.conditioning.weights import read_weights, write_weights
from spatial_v2a.files import write_text
from spatial_v2a.perception_config import PerceptionConfig
from spatial_v2a.training import (
    perception_boxes,
    perception_depth,
    perception_detector,
    perception_dino,
    perception_rtdetr,
)
from spatial_v2a.training.perception_data import FramePool, LabelledFrame
from spatial_v2a.training.perception_loop import Budget, LoopSettings, PerceptionLoop

log = logging.getLogger(__name__)

Part = Literal["dino", "depth", "detector", "rtdetr"]
PARTS: tuple[Part, ...] = ("dino", "depth", "detector", "rtdetr")
DEFAULT_MINUTES = {"dino": 6.0, "depth": 8.0, "detector": 35.0, "rtdetr": 60.0}
FRAMES_PER_TRAIN_CLIP = 12
FRAMES_PER_VAL_CLIP = 8


@dataclass(frozen=True)
class Recipe:
    """How one encoder is built, fed, judged and stored."""

    build: Callable[[], nn.Module]
    make_loss: Callable[[nn.Module], Callable[[nn.Module, Any], dict[str, torch.Tensor]]]
    batches: Callable[..., Iterator[Any]]
    batch_size: int
    score: Callable[[nn.Module, list[LabelledFrame]], dict[str, Any]]
    encoder: Callable[[nn.Module], nn.Module]
    settings: LoopSettings


def recipe(part: Part, config: PerceptionConfig) -> Recipe:
    """The recipe of one encoder."""
    if part == "detector":
        return Recipe(
            build=lambda: perception_detector.build_trainable(config.detector),
            make_loss=perception_detector.DetectorLoss,
            batches=partial(perception_boxes.detector_batches, settings=config.detector),
            batch_size=perception_boxes.BATCH_SIZE,
            score=lambda m, frames: perception_detector.score_detector(config.detector, m, frames),
            encoder=lambda model: model,
            settings=perception_detector.SETTINGS,
        )
    if part == "rtdetr":
        return Recipe(
            build=lambda: perception_rtdetr.build_trainable(config.rtdetr),
            make_loss=lambda model: perception_rtdetr.rtdetr_loss,
            batches=partial(perception_boxes.detector_batches, settings=config.rtdetr),
            batch_size=perception_boxes.BATCH_SIZE,
            score=lambda m, frames: perception_rtdetr.score_rtdetr(config.rtdetr, m, frames),
            encoder=lambda model: model,
            settings=perception_rtdetr.SETTINGS,
        )
    if part == "depth":
        return Recipe(
            build=lambda: perception_depth.build_trainable(config.depth),
            make_loss=lambda model: perception_depth.depth_loss,
            batches=partial(perception_depth.depth_batches, settings=config.depth),
            batch_size=perception_depth.BATCH_SIZE,
            score=lambda m, frames: perception_depth.score_depth(config.depth, m, frames),
            encoder=lambda model: model,
            settings=perception_depth.SETTINGS,
        )
    return Recipe(
        build=lambda: perception_dino.PatchProbe(config.dino),
        make_loss=lambda model: perception_dino.dino_loss,
        batches=partial(perception_dino.dino_batches, settings=config.dino),
        batch_size=perception_dino.BATCH_SIZE,
        score=lambda m, frames: perception_dino.score_dino(config.dino, m, frames),
        encoder=lambda model: model.encoder,
        settings=perception_dino.SETTINGS,
    )


def train_parts(
    parts: Sequence[Part],
    config: PerceptionConfig,
    data: list[Path],
    *,
    val: Path | None,
    out: Path,
    minutes: float | None,
    steps: int | None,
    seed: int,
    init: Path | None,
    learning_rate: float | None,
) -> None:
    """Trains encoders one after another on frames of the same clips; options as of the command."""
    out.mkdir(parents=True, exist_ok=True)
    pool = FramePool(data, frames_per_clip=FRAMES_PER_TRAIN_CLIP)
    log.info("%d frames of %d clips", len(pool.frames), pool.num_clips)
    for part in parts:
        train_part(
            part,
            config,
            pool=pool,
            val=val,
            out=out,
            budget=Budget(steps, None if steps else minutes or DEFAULT_MINUTES[part]),
            seed=seed,
            init=init,
            learning_rate=learning_rate,
        )


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
    """Trains one encoder, scores it and adds it to the checkpoint of the run folder."""
    plan = recipe(part, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = plan.build()
    if init is not None:
        read_weights(init, part, plan.encoder(model))
    rate = learning_rate or plan.settings.learning_rate
    loop = PerceptionLoop(
        model,
        plan.make_loss(model),
        settings=replace(plan.settings, learning_rate=rate),
        state_path=out / f"{part}.state.safetensors",
    )
    random = np.random.default_rng([seed, loop.step])
    log.info("%s: %d parameters", part, sum(p.numel() for p in model.parameters()))
    size = batch_size or plan.batch_size
    loop.run(plan.batches(pool, random=random, batch_size=size), budget=budget)
    metrics: dict[str, Any] = {
        "steps": loop.step,
        "minutes": round(loop.elapsed_s / 60, 2),
        "train_frames": len(pool.frames),
        "train_clips": pool.num_clips,
    }
    folder = out / "checkpoint"
    write_weights(folder, part, plan.encoder(loop.ema))
    if val is not None and any(val.rglob("*.tar")):
        frames = FramePool([val], frames_per_clip=FRAMES_PER_VAL_CLIP).frames
        metrics |= plan.score(loop.ema, frames)
    _merge_metrics(folder / "perception_metrics.json", part, metrics)
    log.info("%s: %s", part, json.dumps(metrics))


def _merge_metrics(path: Path, part: Part, metrics: dict[str, Any]) -> None:
    known = read_json(path) if path.is_file() else {}
    known[part] = metrics
    write_text(path, json.dumps(known, indent=2) + "\n")
