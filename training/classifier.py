"""Trains the sound classifier of the benchmark on ground-truth audio only.

Legend: B windows, C audio channels, L samples, M mel bands, T spectrum frames, K classes.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from spatial_v2a.clip import Clip, read_shards
from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.config import LoopTraining
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text
from spatial_v2a.models.classifier import ClassifierConfig, SoundClassifier
from spatial_v2a.timing import TIMING
from spatial_v2a.training.loop import Batch, Budget, Losses, Recipe, train
from spatial_v2a.truth import class_window_starts, clip_truth

WINDOW_S = 2


@dataclass
class WindowSet:
    """Windows of single-source sound as mel power, channels apart so that pan can be redrawn.

    Attributes:
        power_BCMT: mel power per channel, float16 of log10(power + 1e-10) to save memory.
        label_B: class index.
        clip_B: number of the clip a window comes from.
    """

    power_BCMT: Tensor
    label_B: Tensor
    clip_B: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers, and the most frequent wrong ones.

    Attributes:
        windows: share of windows named right.
        clips: share of clips named right by their windows' mean log-probability.
        confusions: (true, named, count of windows), most frequent first.
        per_class: share of windows named right for each class that occurs.
    """

    windows: float
    clips: float
    num_windows: int
    num_clips: int
    confusions: list[tuple[str, str, int]]
    per_class: dict[str, float]


def default_config() -> ClassifierConfig:
    """The classifier for every sounding class, on windows of two seconds."""
    return ClassifierConfig(
        class_names=list(CLASS_NAMES),
        sample_rate_hz=TIMING.sample_rate_hz,
        window_samples=WINDOW_S * TIMING.sample_rate_hz,
    )


@torch.no_grad()
def collect_windows(
    clips: Iterable[Clip], model: SoundClassifier, *, max_per_clip: int | None = None
) -> WindowSet:
    """Takes the audible windows of clips in which one class sounds.

    Args:
        clips: recordings with metadata; clips with several classes are passed over.
        model: gives the window length and the mel front end.
        max_per_clip: keep at most this many, evenly spread (all when None).

    Raises:
        UserError: when no clip holds such a window.
    """
    powers, labels, owners = [], [], []
    length = model.config.window_samples
    for number, clip in enumerate(clips):
        truth = clip_truth(clip.meta)
        if truth.class_name is None:
            continue
        audio_LC = clip.audio_LC()
        starts = class_window_starts(
            truth, audio_LC, window_samples=length, hop_samples=TIMING.sample_rate_hz
        )
        if max_per_clip and len(starts) > max_per_clip:
            keep = np.linspace(0, len(starts) - 1, max_per_clip).round().astype(int)
            starts = [starts[i] for i in keep]
        for start in starts:
            window_CL = torch.from_numpy(audio_LC[start : start + length].T.copy())
            power_CMT = model.mel(window_CL)
            powers.append((power_CMT + 1e-10).log10().half())
            labels.append(model.config.class_names.index(truth.class_name))
            owners.append(number)
    if not powers:
        raise UserError("no clip has one audible source for two seconds; record walkers clips")
    return WindowSet(torch.stack(powers), torch.tensor(labels), torch.tensor(owners))


def augmented_batches(
    windows: WindowSet, *, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Draws classes evenly and windows within them, for ever; random pan, gain, and time shift.

    Yields:
        Summed mel power `power_BMT` and labels `label_B`.
    """
    present = windows.label_B.unique()
    members = [torch.nonzero(windows.label_B == label).flatten() for label in present]
    while True:
        classes = torch.randint(len(present), (batch_size,), generator=generator).tolist()
        picks = [
            members[c][torch.randint(len(members[c]), (1,), generator=generator)] for c in classes
        ]
        index_B = torch.cat(picks)
        power_BCMT = 10.0 ** windows.power_BCMT[index_B].float()
        # Summed power under a pan is a weighted sum of the channels' powers.
        weight_B2 = torch.rand(batch_size, 2, generator=generator) + 0.05
        power_BMT = torch.einsum("bcmt,bc->bmt", power_BCMT, weight_B2)
        shift = int(torch.randint(power_BMT.shape[-1], (1,), generator=generator))
        gain_B = 10 ** (torch.rand(batch_size, generator=generator) * 4 - 3)
        power_BMT = power_BMT.roll(shift, dims=-1) * gain_B[:, None, None]
        yield {"power_BMT": power_BMT, "label_B": windows.label_B[index_B]}


class ClassifierObjective(nn.Module):
    """Cross entropy with smoothed labels."""

    def __init__(self, model: SoundClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, *, step: int, rng: torch.Generator) -> Losses:
        """Loss of one batch."""
        del step, rng
        logits_BK = self.model.classify(batch["power_BMT"])
        loss = functional.cross_entropy(logits_BK, batch["label_B"], label_smoothing=0.05)
        return {"loss": loss}


def train_classifier(
    windows: WindowSet,
    model: SoundClassifier,
    run_dir: Path,
    *,
    num_steps: int,
    seed: int,
    batch_size: int = 32,
) -> dict[str, float]:
    """Trains in place with AdamW and a one-cycle schedule, and saves the classifier in `run_dir`.

    Returns:
        Figures of `loop.train`.
    """
    settings = LoopTraining(
        batch_size=batch_size,
        learning_rate=3e-3,
        weight_decay=0.02,
        ema_decay=0.0,
        grad_clip=1e9,
        seed=seed,
        save_every=max(1, num_steps // 2),
        log_every=100,
    )

    def batches(start: int, process: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed + process)
        drawn = augmented_batches(windows, batch_size=batch_size, generator=generator)
        return islice(drawn, start, None)

    def export(trained: nn.Module) -> None:
        model.load_state_dict(trained.state_dict())
        model.save(run_dir)

    objective = ClassifierObjective(model)
    recipe = Recipe(
        name="classifier",
        objective=objective,
        batches=batches,
        settings=settings,
        budget=Budget(num_steps),
        optimizer=AdamW(model.parameters(), lr=2e-3, weight_decay=settings.weight_decay),
        schedule=_one_cycle(num_steps, settings.learning_rate),
        averaged=lambda objective: objective.model,
        export=export,
    )
    figures = train(recipe, run_dir)
    model.eval()
    return figures


def _one_cycle(num_steps: int, highest: float) -> Callable[[Optimizer, int, float], None]:
    cycle: OneCycleLR | None = None

    def schedule(optimizer: Optimizer, step: int, progress: float) -> None:
        nonlocal cycle
        del progress
        if cycle is None:
            inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
            cycle = OneCycleLR(inner, max_lr=highest, total_steps=num_steps, pct_start=0.15)
        while cycle.last_epoch < step:
            cycle.step()

    return schedule


@torch.no_grad()
def accuracy(windows: WindowSet, model: SoundClassifier) -> Accuracy:
    """Scores a classifier on windows it was not trained on."""
    model.eval()
    names = model.config.class_names
    batches = [
        model.classify((10.0 ** power_BCMT.float()).sum(dim=1)).log_softmax(dim=1)
        for power_BCMT in windows.power_BCMT.split(64)
    ]
    logits_BK = torch.cat(batches)
    named_B = logits_BK.argmax(dim=1)
    right_B = named_B == windows.label_B
    clip_right = []
    for owner in windows.clip_B.unique():
        rows = windows.clip_B == owner
        clip_right.append(bool(logits_BK[rows].mean(0).argmax() == windows.label_B[rows][0]))
    pairs: dict[tuple[str, str], int] = {}
    for true, named in zip(windows.label_B[~right_B], named_B[~right_B], strict=True):
        pair = (names[true], names[named])
        pairs[pair] = pairs.get(pair, 0) + 1
    return Accuracy(
        windows=float(right_B.float().mean()),
        clips=float(np.mean(clip_right)),
        num_windows=len(right_B),
        num_clips=len(clip_right),
        confusions=sorted(((*pair, n) for pair, n in pairs.items()), key=lambda item: -item[2]),
        per_class={
            names[label]: float(right_B[windows.label_B == label].float().mean())
            for label in windows.label_B.unique()
        },
    )


def make_classifier(
    splits: dict[str, list[Path]], out: Path, *, num_steps: int, seed: int, max_per_clip: int
) -> Iterator[str]:
    """Trains a classifier and writes weights, config and `scores.json` into `out`.

    Args:
        splits: shards of 'data', and of 'val' and perhaps 'test', which are scored.
        out: run folder.
        num_steps, seed: of the training.
        max_per_clip: windows taken from a clip to train on.

    Yields:
        Lines that say how it goes.
    """
    torch.manual_seed(seed)
    model = SoundClassifier(default_config())
    train_set = collect_windows(read_shards(splits["data"]), model, max_per_clip=max_per_clip)
    present = {model.config.class_names[i] for i in train_set.label_B.tolist()}
    yield f"training: {len(train_set.label_B)} windows of {len(present)} classes"
    if absent := sorted(set(model.config.class_names) - present):
        yield f"never heard: {', '.join(absent)}"
    train_classifier(train_set, model, out, num_steps=num_steps, seed=seed)
    scores: dict[str, Any] = {}
    for split in ("val", "test"):
        if split in splits:
            score = accuracy(collect_windows(read_shards(splits[split]), model), model)
            scores[split] = asdict(score)
            yield f"{split}: {_summary(score)}"
    scores["train"] = {"num_windows": len(train_set.label_B), "steps": num_steps, "seed": seed}
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    yield f"classifier: {out}"


def _summary(score: Accuracy) -> str:
    worst = ", ".join(f"{true} as {named} x{n}" for true, named, n in score.confusions[:5])
    return (
        f"{score.windows:.1%} of {score.num_windows} windows, {score.clips:.1%} of "
        f"{score.num_clips} clips; confused: {worst or 'none'}"
    )
