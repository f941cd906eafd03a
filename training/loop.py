"""The one training loop: Accelerate, EMA, clipping, TensorBoard, exact resume by the same command.

A batch, the learning rate and the noise are pure functions of (seed, step, process), so a run that
was killed continues on the same loss curve. State folders are written under a temporary name and
renamed, so a kill never leaves half a state.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spatial_v2a.errors import UserError
from spatial_v2a.files import written_folder
from spatial_v2a.tensor_files import load_into, read_tensors
from spatial_v2a.training.ema import Ema
from spatial_v2a.training_config import StageTraining

log = logging.getLogger(__name__)

EMA = "averaged"  # name of the averaged weights in a state folder

Losses = dict[str, Tensor]


@dataclass
class Task:
    """What one stage trains.

    Attributes:
        name: stage name, used for the tracker.
        objective: module whose forward(batch, step, rng) returns losses with a key 'loss'; all its
            trainable parameters are optimised.
        make_batch: (step, process index) -> dict of tensors; must not depend on anything else.
        section: optimiser settings.
        averaged: the part of `objective` that the EMA follows and that `export` receives.
        export: writes the checkpoint folder from the averaged module, after `save_every` steps
            and at the end.
        on_step: called with (step, averaged module) after every update (target networks).
    """

    name: str
    objective: nn.Module
    make_batch: Callable[[int, int], dict[str, Any]]
    section: StageTraining
    averaged: Callable[[nn.Module], nn.Module]
    export: Callable[[nn.Module, int], None]
    on_step: Callable[[int, nn.Module], None] | None = None


class _Steps(Dataset):
    """Map-style view: index = global step."""

    def __init__(self, task: Task, process_index: int) -> None:
        self.task = task
        self.process_index = process_index

    def __len__(self) -> int:
        return self.task.section.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.task.make_batch(step, self.process_index)


def learning_rate(section: StageTraining, step: int) -> float:
    """Linear warm-up, constant, cosine to zero over the last `decay_share` of the run."""
    rate = section.learning_rate * min(1.0, (step + 1) / max(1, section.warmup_steps))
    tail = max(1, round(section.steps * section.decay_share))
    progress = max(0.0, (step - (section.steps - tail)) / tail)
    return rate * 0.5 * (1 + math.cos(math.pi * progress))


def step_generator(seed: int, step: int, process_index: int) -> torch.Generator:
    """CPU generator of one step's noise."""
    mixed = (seed * 1_000_003 + step) * 4_099 + process_index
    return torch.Generator().manual_seed(mixed % (2**63))


def train(task: Task, run_dir: Path, *, cpu: bool = False) -> dict[str, float]:
    """Trains until `section.steps`, from the newest state in `run_dir` when there is one.

    Returns:
        The last logged losses.
    Raises:
        UserError: the run folder holds a finished run of more steps than asked for.
    """
    section = task.section
    accelerator = Accelerator(
        mixed_precision=section.precision,
        cpu=cpu,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir)),
    )
    accelerator.init_trackers(task.name)
    trainable = [p for p in task.objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=section.learning_rate, betas=(0.9, 0.99), weight_decay=section.weight_decay
    )
    objective, optimizer = accelerator.prepare(task.objective, optimizer)
    inner = accelerator.unwrap_model(objective)
    ema = Ema(task.averaged(inner), section.ema_decay)
    start = _resume(accelerator, run_dir, ema)
    if start > section.steps:
        raise UserError(
            f"{run_dir} is at step {start}, past steps={section.steps}; raise steps or choose "
            "another --out"
        )
    if start and task.on_step:
        task.on_step(start - 1, ema.module)
    loader = DataLoader(
        _Steps(task, accelerator.process_index),
        batch_size=None,
        sampler=range(start, section.steps),
        num_workers=section.num_workers,
    )
    last: dict[str, float] = {}
    with _progress(accelerator.is_main_process) as progress:
        bar = progress.add_task(task.name, total=section.steps, completed=start, note="")
        clock = time.monotonic()
        for step, batch in zip(range(start, section.steps), loader, strict=True):
            losses = _update(accelerator, task, objective, optimizer, trainable, batch, step)
            ema.update(task.averaged(inner), step)
            if task.on_step:
                task.on_step(step, ema.module)
            if (step + 1) % section.log_every == 0 or step + 1 == section.steps:
                last = {name: float(value) for name, value in losses.items()}
                last["seconds_per_step"] = (time.monotonic() - clock) / section.log_every
                clock = time.monotonic()
                accelerator.log(last, step=step + 1)
                note = " ".join(f"{k}={v:.4g}" for k, v in last.items())
                progress.update(bar, note=note)
                log.info("%s step %d %s", task.name, step + 1, note)
            if (step + 1) % section.save_every == 0 or step + 1 == section.steps:
                _save(accelerator, run_dir, step + 1, ema)
                if accelerator.is_main_process:
                    task.export(ema.module, step + 1)
            progress.update(bar, completed=step + 1)
    accelerator.end_training()
    return last


def _update(
    accelerator: Accelerator,
    task: Task,
    objective: nn.Module,
    optimizer: Any,
    trainable: list[nn.Parameter],
    batch: dict[str, Any],
    step: int,
) -> Losses:
    """One optimiser step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(task.section, step)
    batch = {k: v.to(accelerator.device) for k, v in batch.items()}
    rng = step_generator(task.section.seed, step, accelerator.process_index)
    with accelerator.autocast():
        losses = objective(batch, step=step, rng=rng)
    accelerator.backward(losses["loss"])
    losses["grad_norm"] = accelerator.clip_grad_norm_(trainable, task.section.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: value.detach() for name, value in losses.items()}


def _states(run_dir: Path) -> list[Path]:
    """State folders, oldest first."""
    return sorted(run_dir.glob("state-[0-9]*"), key=lambda path: int(path.name.split("-")[1]))


def _resume(accelerator: Accelerator, run_dir: Path, ema: Ema) -> int:
    """Loads the newest state; returns the number of steps already done.

    Raises:
        UserError: the state is of an earlier release, or damaged.
    """
    states = _states(run_dir)
    if not states:
        return 0
    # Accelerate keeps what is registered with it in a pickle, and opens that as one.
    load_into(ema.module, read_tensors(states[-1], EMA), where=states[-1])
    accelerator.load_state(str(states[-1]))
    step = int(states[-1].name.split("-")[1])
    log.info("resuming %s at step %d", run_dir, step)
    return step


def _save(accelerator: Accelerator, run_dir: Path, step: int, ema: Ema) -> None:
    """Writes a state folder and keeps the newest two."""
    with ExitStack() as stack:
        drafts: list[str | None] = [None]
        if accelerator.is_main_process:
            folder = written_folder(run_dir / f"state-{step}", overwrite=True)
            drafts = [str(stack.enter_context(folder))]
            averaged = {n: x.contiguous().clone() for n, x in ema.module.state_dict().items()}
            save_file(averaged, Path(drafts[0]) / f"{EMA}.safetensors")
        # All processes write into the one folder of the first.
        accelerator.save_state(broadcast_object_list(drafts)[0])
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for old in _states(run_dir)[:-2]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _progress(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not is_shown,
    )
