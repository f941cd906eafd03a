"""Command line `spatial-v2a-train`: record, prepare and train."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from spatial_v2a.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ConfigName = Annotated[str, typer.Option(help="Preset name or YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override, section.key=value.")]
DataDirs = Annotated[list[Path], typer.Option(help="Folder of shards; repeatable.")]
ValDirs = Annotated[list[Path] | None, typer.Option(help="Validation shards; repeatable.")]
OutDir = Annotated[Path, typer.Option(help="Run folder; the same command resumes it.")]
InitDir = Annotated[Path | None, typer.Option(help="Checkpoint to start from.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 keeps torch's choice.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print config and sizes, then stop.")]


@app.command()
def vae(
    data: DataDirs,
    out: OutDir,
    config: ConfigName = "stage",
    val: ValDirs = None,
    init: InitDir = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Trains the stereo autoencoder on the audio of the clips."""
    from spatial_v2a.training.run import prepare_run, report
    from spatial_v2a.training.vae import train_vae

    resolved = prepare_run(config, overrides, out, threads=threads, dry_run=dry_run)
    if resolved is not None:
        report(train_vae(resolved, data, val or [], out, init=init), out)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
