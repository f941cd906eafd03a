"""`spatial-v2a-train classifier`: trains the benchmark's sound classifier.

Run: spatial-v2a-train classifier --data DIR --val DIR --out DIR
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text

if TYPE_CHECKING:
    from spatial_v2a.models.classifier import SoundClassifier
    from spatial_v2a.training.classifier import WindowSet


def classifier(
    data: Annotated[list[Path], typer.Option(help="Folder of training shards; repeatable.")],
    val: Annotated[list[Path], typer.Option(help="Folder of validation shards; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder for weights, config and scores.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="Folder of test shards, scored only; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of 32 windows.")] = 1500,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    max_per_clip: Annotated[int, typer.Option(min=1, help="Windows taken from a clip.")] = 6,
) -> None:
    """Trains the sound classifier on ground-truth audio and reports its accuracy."""
    import torch

    from spatial_v2a.clip import read_shards
    from spatial_v2a.models.classifier import SoundClassifier
    from spatial_v2a.training.classifier import (
        accuracy,
        collect_windows,
        default_config,
        train_classifier,
    )
    from spatial_v2a.training.shards import shard_paths

    paths = {"data": shard_paths(data), "val": shard_paths(val)}
    if test:
        paths["test"] = shard_paths(test)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    torch.manual_seed(seed)
    model = SoundClassifier(default_config())
    started_s = time.monotonic()
    train_set = collect_windows(read_shards(paths["data"]), model, max_per_clip=max_per_clip)
    _describe("training", train_set, model)
    for step, loss in train_classifier(train_set, model, num_steps=steps, seed=seed):
        if step % 100 == 0 or step == steps:
            spent_s = time.monotonic() - started_s
            print(f"step {step}/{steps}  loss {loss:.3f}  {spent_s:.0f} s", flush=True)
    scores = {}
    for split in ("val", "test"):
        if split in paths:
            windows = collect_windows(read_shards(paths[split]), model)
            scores[split] = asdict(accuracy(windows, model))
            print(f"{split}: {_summary(scores[split])}")
    model.save(out)
    scores["train"] = {"num_windows": len(train_set.label_B), "steps": steps, "seed": seed}
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    print(f"classifier: {out}")


def _describe(name: str, windows: "WindowSet", model: "SoundClassifier") -> None:
    present = {model.config.class_names[i] for i in windows.label_B.tolist()}
    print(f"{name}: {len(windows.label_B)} windows of {len(present)} classes", flush=True)
    absent = sorted(set(model.config.class_names) - present)
    if absent:
        print(f"never heard: {', '.join(absent)}")


def _summary(score: dict) -> str:
    worst = ", ".join(f"{true} as {named} x{n}" for true, named, n in score["confusions"][:5])
    return (
        f"{score['windows']:.1%} of {score['num_windows']} windows, "
        f"{score['clips']:.1%} of {score['num_clips']} clips; confused: {worst or 'none'}"
    )
