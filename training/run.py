"""What every training command does before and after the loop: config, sizes, folder, figures."""

import json
import logging
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from spatial_v2a.config import Config, config_to_yaml, load_config
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A

log = logging.getLogger(__name__)


def prepare_run(
    preset_or_path: str,
    overrides: list[str] | None,
    run_dir: Path,
    *,
    threads: int,
    dry_run: bool,
) -> Config | None:
    """Resolves the config, prints it with parameter counts, and makes the run folder.

    Returns:
        The config, or None after a dry run.
    Raises:
        UserError: bad config, or `run_dir` cannot be made or holds a run of another config.
    """
    config = load_config(preset_or_path, overrides)
    text = config_to_yaml(config)
    console = Console()
    console.print(text, markup=False, highlight=False)
    console.print(parameter_table(config))
    if dry_run:
        return None
    if threads:
        torch.set_num_threads(threads)
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
    saved.write_text(text)
    return config


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
    (run_dir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    table = Table("figure", "value", title=str(run_dir))
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
