"""What every training command does before and after the loop: config, sizes, folder, figures."""

import json
import logging
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from spatial_v2a.config import Config, config_to_yaml, load_config
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import find_checkpoint
from spatial_v2a.training.shards import shard_paths

log = logging.getLogger(__name__)


def prepare_run(
    preset_or_path: str,
    overrides: list[str] | None,
    run_dir: Path,
    *,
    data: list[Path],
    init: Path | None,
    threads: int,
    dry_run: bool,
) -> Config | None:
    """Checks what a run needs, prints its config with parameter counts, and makes its folder.

    Args:
        preset_or_path, overrides: as for `load_config`.
        run_dir: where the run is kept.
        data: folders of shards, those for validation too; a dry run needs none.
        init: checkpoint to start from.
        threads: of PyTorch on the CPU; 0 keeps its own choice.
        dry_run: stop after printing.

    Returns:
        The config, or None after a dry run.
    Raises:
        UserError: bad config, no shards, no checkpoint, or `run_dir` cannot be made or holds a run
            of another config; before anything is printed.
    """
    config = load_config(preset_or_path, overrides)
    text = config_to_yaml(config)
    if not dry_run:
        shard_paths(data)
        if init is not None:
            find_checkpoint(init)
        _claim(run_dir, text)
    console = Console()
    console.print(text, markup=False, highlight=False)
    console.print(parameter_table(config))
    if dry_run:
        return None
    if threads:
        torch.set_num_threads(threads)
    return config


def _claim(run_dir: Path, text: str) -> None:
    """Makes the run folder of a config, or refuses that of another."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make run folder {run_dir} ({error}); choose another --out") from (
            error
        )
    saved = run_dir / "config.yaml"
    if saved.exists() and saved.read_text() != text:
        raise UserError(
            f"{run_dir} holds a run with another config; use the same options or another --out"
        )
    write_text(saved, text)


def parameter_table(config: Config) -> Table:
    """Parameter counts of the trained parts, without allocating them."""
    with torch.device("meta"):
        model = SpatialV2A(config)
    table = Table("part", "parameters", title=f"{config.name}: trained parts")
    for name, module in model.named_children():
        count = sum(p.numel() for p in module.parameters())
        if count:
            table.add_row(name, f"{count:,}")
    return table


def report(figures: dict[str, float], run_dir: Path) -> None:
    """Prints the figures and keeps them as `figures.json` in the run folder."""
    write_text(run_dir / "figures.json", json.dumps(figures, indent=2) + "\n")
    table = Table("figure", "value", title=str(run_dir))
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
