"""`spatial-v2a-train perception`: trains the compact encoders on Stage clips, on one core.

Run the same command again to resume; what is finished is not trained twice.
"""

from pathlib import Path
from typing import Annotated

import typer

from spatial_v2a.errors import UserError


def perception(
    data: Annotated[list[Path], typer.Option(help="Folder of training shards; repeatable.")],
    out: Annotated[Path, typer.Option(help="Run folder; the checkpoint is OUT/checkpoint.")],
    val: Annotated[Path | None, typer.Option(help="Folder of validation shards.")] = None,
    config: Annotated[str, typer.Option(help="Preset name or YAML file.")] = "stage",
    only: Annotated[str | None, typer.Option(help="One of dino, depth, detector, rtdetr.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time per encoder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps per encoder, instead of time.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Checkpoint folder whose encoders are trained on.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-7, help="Highest rate, instead of the encoder's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Trains the compact encoders: DINO, depth, and the two detectors YOLO11 and RT-DETR."""
    import torch

    from spatial_v2a.config import load_config
    from spatial_v2a.training.perception import PARTS, train_parts

    if only is not None and only not in PARTS:
        raise UserError(f"--only {only} is unknown; choose from {', '.join(PARTS)}")
    settings = load_config(config).perception
    torch.set_num_threads(threads)
    train_parts(
        PARTS if only is None else [only],
        settings,
        data,
        val=val,
        out=out,
        minutes=minutes,
        steps=steps,
        seed=seed,
        init=init,
        learning_rate=learning_rate,
    )
