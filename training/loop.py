"""The one training loop: Accelerate, averaged weights, clipping, TensorBoard, exact resume.

What a run trains is a `Recipe`. The noise of a step is a pure function of (seed, step, process) and
so is its batch where the recipe makes it one, so that a run that was killed continues on the same
loss curve. State folders are written under a temporary name and renamed: a kill leaves no half one.
"""

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from spatial_v2a.bounded import read_json
from spatial_v2a.config import Config, LoopTraining, StageTraining, config_to_yaml, parse_config
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text, written_folder
from spatial_v2a.tensor_files import load_into, read_tensors

log = logging.getLogger(__name__)

AVERAGED = "averaged"  # name of the averaged weights in a state folder
CLOCK = "clock.json"

Losses = dict[str, Tensor]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Budget:
    """When a training ends: after `num_steps` steps, or after `minutes` of training time."""

    num_steps: int | None = None
    minutes: float | None = None

    def spent(self, step: int, elapsed_s: float) -> float:
        """Share of the budget that is spent, 1 and more when it is over."""
        if self.num_steps is not None:
            return step / self.num_steps
        assert self.minutes is not None
        return elapsed_s / (60.0 * self.minutes)


@dataclass
class Recipe:
    """What a run trains, on what, and what is kept of it.

    Attributes:
        name: for the tracker and the progress bar.
        objective: module whose forward(batch, step=, rng=) returns losses with a key 'loss'; all
            its trainable parameters are optimised.
        batches: (first step, process index) -> batches from that step on.
        settings: of the loop.
        budget: when it ends.
        optimizer: over the parameters of `objective`.
        schedule: (optimizer, step, share of the budget that is spent) sets the rates of a step.
        averaged: the part of `objective` that the average follows and that `export` receives.
        export: writes the checkpoint from the averaged part, after `save_every` steps and at the
            end.
        on_step: called with (step, averaged part) after every update (target networks).
    """

    name: str
    objective: nn.Module
    batches: Callable[[int, int], Iterable[Batch]]
    settings: LoopTraining
    budget: Budget
    optimizer: Optimizer
    schedule: Callable[[Optimizer, int, float], None]
    averaged: Callable[[Any], nn.Module]
    export: Callable[[nn.Module], None]
    on_step: Callable[[int, nn.Module], None] | None = None


def stage_recipe(
    name: str,
    objective: nn.Module,
    section: StageTraining,
    make_batch: Callable[[int, int], Batch],
    **parts: Any,
) -> Recipe:
    """The recipe of a section of the configuration; `make_batch` is a pure function."""
    trainable = [p for p in objective.parameters() if p.requires_grad]
    options = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    return Recipe(
        name=name,
        objective=objective,
        batches=lambda start, process: _loader(make_batch, section, start, process),
        settings=section,
        budget=Budget(section.steps),
        optimizer=AdamW(trainable, betas=(0.9, 0.99), **options),
        schedule=lambda optimizer, step, _: set_rate(optimizer, learning_rate(section, step)),
        **parts,
    )


class _Steps(Dataset):
    """Map-style view: index = global step."""

    def __init__(self, make_batch: Callable[[int, int], Batch], steps: int, process: int) -> None:
        self.make_batch, self.steps, self.process = make_batch, steps, process

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.make_batch(step, self.process)


def _loader(
    make_batch: Callable[[int, int], Batch], section: StageTraining, start: int, process: int
) -> DataLoader:
    steps = _Steps(make_batch, section.steps, process)
    order = range(start, section.steps)
    return DataLoader(steps, batch_size=None, sampler=order, num_workers=section.num_workers)


def claim_run(run_dir: Path, config: Config) -> None:
    """Makes the run folder of a config, or refuses that of another.

    Raises:
        UserError: it holds a run of another config, or cannot be written.
    """
    saved = run_dir / "config.yaml"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if saved.exists() and parse_config(saved.read_text("utf-8"), where=str(saved)) != config:
            raise UserError(
                f"{run_dir} holds a run with another config; use the same options or another --out"
            )
        write_text(saved, config_to_yaml(config))
    except OSError as error:
        raise UserError(f"cannot make run folder {run_dir} ({error}); choose another --out") from (
            error
        )


def learning_rate(section: StageTraining, step: int) -> float:
    """Linear warm-up, constant, cosine to zero over the last `decay_share` of the run."""
    rate = section.learning_rate * min(1.0, (step + 1) / max(1, section.warmup_steps))
    tail = max(1, round(section.steps * section.decay_share))
    progress = max(0.0, (step - (section.steps - tail)) / tail)
    return rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_generator(seed: int, step: int, process_index: int) -> torch.Generator:
    """CPU generator of one step's noise."""
    mixed = (seed * 1_000_003 + step) * 4_099 + process_index
    return torch.Generator().manual_seed(mixed % (2**63))


class Ema:
    """Averaged copy of a module; `decay` ramps up so that early steps are not remembered.

    The effective decay at step n is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards `module` after optimiser step `step` (0-based)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step)) if self.decay else 1.0
        values = _tensors(module)
        for name, mean in _tensors(self.module).items():
            if mean.is_floating_point():
                mean.lerp_(values[name], weight)
            else:
                mean.copy_(values[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a module, shared weights once."""
    kept = module.state_dict()
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor for name, tensor in named if name in kept}


def train(recipe: Recipe, run_dir: Path, *, cpu: bool = False) -> dict[str, float]:
    """Trains until the budget is spent, from the newest state in `run_dir` when there is one.

    Returns:
        The last logged losses, and how long it took in all.
    Raises:
        UserError: the run folder holds a finished run of more steps than asked for.
    """
    settings, budget = recipe.settings, recipe.budget
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=cpu,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir)),
    )
    accelerator.init_trackers(recipe.name)
    objective, optimizer = accelerator.prepare(recipe.objective.train(), recipe.optimizer)
    inner = accelerator.unwrap_model(objective)
    ema = Ema(recipe.averaged(inner), settings.ema_decay)
    step, elapsed_s = _resume(accelerator, run_dir, ema)
    if budget.num_steps is not None and step > budget.num_steps:
        raise UserError(
            f"{run_dir} is at step {step}, past steps={budget.num_steps}; raise steps or choose "
            "another --out"
        )
    if step and recipe.on_step:
        recipe.on_step(step - 1, ema.module)
    began_s = time.monotonic() - elapsed_s
    last: dict[str, float] = {}
    with _progress(accelerator.is_main_process) as progress:
        bar = progress.add_task(recipe.name, total=1.0, note="")
        noted_step, noted_s = step, elapsed_s
        batches: Iterator[Batch] = iter(recipe.batches(step, accelerator.process_index))
        spent = budget.spent(step, elapsed_s)
        while spent < 1.0:
            recipe.schedule(optimizer, step, spent)
            losses = _update(accelerator, settings, objective, optimizer, next(batches), step)
            ema.update(recipe.averaged(inner), step)
            if recipe.on_step:
                recipe.on_step(step, ema.module)
            step += 1
            elapsed_s = time.monotonic() - began_s
            spent = budget.spent(step, elapsed_s)
            if step % settings.log_every == 0 or spent >= 1.0:
                last = {name: float(value) for name, value in losses.items()}
                last["seconds_per_step"] = (elapsed_s - noted_s) / (step - noted_step)
                noted_step, noted_s = step, elapsed_s
                accelerator.log(last, step=step)
                note = " ".join(f"{k}={v:.4g}" for k, v in last.items())
                progress.update(bar, note=note)
                log.info("%s step %d %s", recipe.name, step, note)
            if step % settings.save_every == 0 or spent >= 1.0:
                _save(accelerator, run_dir, step, ema, elapsed_s)
                if accelerator.is_main_process and spent < 1.0:
                    recipe.export(ema.module)
            progress.update(bar, completed=min(spent, 1.0))
    if accelerator.is_main_process:
        recipe.export(ema.module)
    accelerator.end_training()
    return last | {"steps": step, "minutes": round(elapsed_s / 60, 2)}


def _update(
    accelerator: Accelerator,
    settings: LoopTraining,
    objective: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    step: int,
) -> Losses:
    """One optimiser step."""
    batch = {k: v.to(accelerator.device) for k, v in batch.items()}
    rng = step_generator(settings.seed, step, accelerator.process_index)
    with accelerator.autocast():
        losses = objective(batch, step=step, rng=rng)
    accelerator.backward(losses["loss"])
    trainable = [p for p in objective.parameters() if p.requires_grad]
    losses["grad_norm"] = accelerator.clip_grad_norm_(trainable, settings.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: value.detach() for name, value in losses.items()}


def _states(run_dir: Path) -> list[Path]:
    """State folders, oldest first."""
    return sorted(run_dir.glob("state-[0-9]*"), key=lambda path: int(path.name.split("-")[1]))


def _resume(accelerator: Accelerator, run_dir: Path, ema: Ema) -> tuple[int, float]:
    """Loads the newest state; returns the number of steps already done and their seconds.

    Raises:
        UserError: the state is of an earlier release, or damaged.
    """
    states = _states(run_dir)
    if not states:
        return 0, 0.0
    # Accelerate keeps what is registered with it in a pickle, and opens that as one.
    load_into(ema.module, read_tensors(states[-1], AVERAGED), where=states[-1])
    accelerator.load_state(str(states[-1]))
    step = int(states[-1].name.split("-")[1])
    clock = states[-1] / CLOCK
    log.info("resuming %s at step %d", run_dir, step)
    return step, float(read_json(clock)["elapsed_s"]) if clock.exists() else 0.0


def _save(accelerator: Accelerator, run_dir: Path, step: int, ema: Ema, elapsed_s: float) -> None:
    """Writes a state folder and keeps the newest two."""
    with ExitStack() as stack:
        drafts: list[str | None] = [None]
        if accelerator.is_main_process:
            folder = written_folder(run_dir / f"state-{step}", overwrite=True)
            drafts = [str(stack.enter_context(folder))]
            averaged = {n: x.contiguous().clone() for n, x in ema.module.state_dict().items()}
            save_file(averaged, Path(drafts[0]) / f"{AVERAGED}.safetensors")
            (Path(drafts[0]) / CLOCK).write_text(json.dumps({"elapsed_s": elapsed_s}))
        # All processes write into the one folder of the first.
        accelerator.save_state(broadcast_object_list(drafts)[0])
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for old in _states(run_dir)[:-2]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _progress(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description} {task.percentage:.0f} %"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not is_shown,
    )
