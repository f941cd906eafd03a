"""The loop that trains one compact encoder on one core: budget, cosine rate, EMA, exact resume."""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spatial_v2a.files import written_whole

log = logging.getLogger(__name__)

SAVE_EVERY_S = 120.0
LOG_EVERY_STEPS = 50


@dataclass(frozen=True)
class Budget:
    """When a training ends: after `num_steps` steps, or after `minutes` of training time."""

    num_steps: int | None = None
    minutes: float | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share of the budget that is spent, 0..1."""
        if self.num_steps is not None:
            return min(step / self.num_steps, 1.0)
        assert self.minutes is not None
        return min(elapsed_s / (60.0 * self.minutes), 1.0)


@dataclass(frozen=True)
class LoopSettings:
    """AdamW with warm-up and cosine decay, and an exponential mean of the weights."""

    learning_rate: float
    weight_decay: float = 0.02
    warmup_share: float = 0.04
    final_rate_share: float = 0.02
    ema_decay: float = 0.998
    gradient_clip: float = 5.0


def rate_at(progress: float, settings: LoopSettings) -> float:
    """Learning rate as a pure function of the spent share of the budget."""
    if progress < settings.warmup_share:
        return settings.learning_rate * (0.01 + 0.99 * progress / settings.warmup_share)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    floor = settings.final_rate_share
    return settings.learning_rate * (floor + (1 - floor) * cosine)


class PerceptionLoop:
    """Trains `model` on what `compute_loss` says; `ema` holds the averaged weights.

    Args:
        model: trained in place.
        compute_loss: (model, batch) -> named scalar losses, whose sum is minimised.
        settings: optimiser.
        state_path: where the resumable state is kept (safetensors).
    """

    def __init__(
        self,
        model: nn.Module,
        compute_loss: Callable[[nn.Module, object], dict[str, Tensor]],
        *,
        settings: LoopSettings,
        state_path: Path,
    ) -> None:
        self.model = model
        self.compute_loss = compute_loss
        self.settings = settings
        self.state_path = state_path
        self.ema = copy.deepcopy(model).requires_grad_(False)
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        self.elapsed_s = 0.0
        if state_path.is_file():
            self._load()
            log.info("resumed %s at step %d", state_path.stem, self.step)

    def run(self, batches: Iterator[object], *, budget: Budget) -> None:
        """Trains until the budget is spent; the state is saved now and then and at the end."""
        begin_s, saved_s, base_s = time.monotonic(), time.monotonic(), self.elapsed_s
        means: dict[str, float] = {}
        self.model.train()
        while (progress := budget.progress(self.step, self.elapsed_s)) < 1.0:
            losses = self._train_step(next(batches), progress)
            self.step += 1
            self.elapsed_s = base_s + time.monotonic() - begin_s
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + float(value.detach()) / LOG_EVERY_STEPS
            if self.step % LOG_EVERY_STEPS == 0:
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                speed = self.step / max(self.elapsed_s, 1e-9)
                log.info("step %d (%.1f %%, %.2f/s) %s", self.step, 100 * progress, speed, text)
                means = {}
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                self.save()
                saved_s = time.monotonic()
        self.save()
        self.model.eval()

    def _train_step(self, batch: object, progress: float) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(progress, self.settings)
        losses = self.compute_loss(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(
                self.ema.state_dict().values(), self.model.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)
        return losses

    def save(self) -> None:
        """Writes the resumable state, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
        meta = {"step": str(self.step), "elapsed_s": json.dumps(self.elapsed_s)}
        with written_whole(self.state_path, overwrite=True) as draft:
            save_file(tensors, draft, metadata=meta)

    def _load(self) -> None:
        with safe_open(self.state_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            meta = file.metadata()
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.ema.load_state_dict(parts["ema"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
        self.step, self.elapsed_s = int(meta["step"]), json.loads(meta["elapsed_s"])
