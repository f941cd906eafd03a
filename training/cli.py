"""Command line `spatial-v2a-train`: record, prepare and train."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from spatial_v2a.conditioning.console import build_command, new_app, run_app

app = new_app(help="Record, prepare and train: what the models of spatial-v2a are made with.")

ConfigName = Annotated[str, typer.Option(help="Preset name or YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override, section.key=value.")]
DataDirs = Annotated[list[Path] | None, typer.Option(help="Folder of shards; repeatable.")]
SoundsDir = Annotated[
    Path | None,
    typer.Option(help="Your own recordings, a folder a concept, in place of the bank's."),
]
ValDirs = Annotated[list[Path] | None, typer.Option(help="Validation shards; repeatable.")]
OutDir = Annotated[Path, typer.Option(help="Run folder; the same command resumes it.")]
InitDir = Annotated[Path | None, typer.Option(help="Checkpoint to start from.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 keeps torch's choice.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print config and sizes, then stop.")]


@app.command()
def vae(
    out: OutDir,
    data: DataDirs = None,
    sounds: SoundsDir = None,
    config: ConfigName = "stage",
    val: ValDirs = None,
    init: InitDir = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Trains the stereo autoencoder on the audio of the clips and of the bank."""
    from spatial_v2a.training.run import prepare_run, report
    from spatial_v2a.training.sounds.folder import open_bank
    from spatial_v2a.training.vae import train_vae

    resolved = prepare_run(
        config,
        overrides,
        out,
        data=[*(data or []), *(val or [])],
        init=init,
        threads=threads,
        dry_run=dry_run,
    )
    if resolved is not None:
        bank = open_bank(sounds)
        report(train_vae(resolved, data or [], val or [], out, init=init, bank=bank), out)


StoreDir = Annotated[Path | None, typer.Option(help="Feature store with detected features.")]
StartDir = Annotated[Path, typer.Option(help="Checkpoint whose trained parts are the start.")]

TeacherDir = Annotated[
    Path | None,
    typer.Option(help="Checkpoint that all clips but a walker's learn from: what is kept."),
]


@app.command()
def diffusion(
    out: OutDir,
    init: StartDir,
    data: DataDirs = None,
    sounds: SoundsDir = None,
    config: ConfigName = "stage",
    val: ValDirs = None,
    store: StoreDir = None,
    teacher: TeacherDir = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Trains backbone and head with the denoising loss."""
    _generator(
        "diffusion",
        config,
        overrides,
        data,
        val,
        out,
        init,
        store,
        threads,
        dry_run,
        sounds=sounds,
        teacher=teacher,
    )


@app.command()
def consistency(
    out: OutDir,
    init: StartDir,
    data: DataDirs = None,
    sounds: SoundsDir = None,
    config: ConfigName = "stage",
    val: ValDirs = None,
    store: StoreDir = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Tunes backbone and head for one to four evaluations per tick (ECT)."""
    _generator(
        "consistency",
        config,
        overrides,
        data,
        val,
        out,
        init,
        store,
        threads,
        dry_run,
        sounds=sounds,
    )


def _generator(
    stage: str,
    config: str,
    overrides: list[str] | None,
    data: list[Path] | None,
    val: list[Path] | None,
    out: Path,
    init: Path,
    store: Path | None,
    threads: int,
    dry_run: bool,
    *,
    sounds: Path | None,
    teacher: Path | None = None,
) -> None:
    from spatial_v2a.training.generator import train_generator
    from spatial_v2a.training.run import prepare_run, report
    from spatial_v2a.training.sounds.folder import open_bank

    resolved = prepare_run(
        config,
        overrides,
        out,
        data=[*(data or []), *(val or [])],
        init=init,
        threads=threads,
        dry_run=dry_run,
    )
    if resolved is not None:
        figures = train_generator(
            resolved,
            stage,
            data or [],
            val or [],
            out,
            init=init,
            store_dir=store,
            teacher=teacher,
            bank=open_bank(sounds),
        )
        report(figures, out)


def _register_commands() -> None:
    from spatial_v2a.training.ablate_command import ablate
    from spatial_v2a.training.classifier_command import classifier
    from spatial_v2a.training.extract_command import extract_features
    from spatial_v2a.training.perception_command import perception
    from spatial_v2a.training.stage.command import record
    from spatial_v2a.training.tracks.command import tracks

    for name, function in {
        "record": record,
        "tracks": tracks,
        "perception": perception,
        "extract": extract_features,
        "classifier": classifier,
        "ablate": ablate,
    }.items():
        app.command(name)(function)


_register_commands()


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # A polite kill must clean up like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    return run_app(
        lambda: build_command(app),
        arguments or ["--help"],
        prog_name="spatial-v2a-train",
        stopped="stopped; the same command goes on from the last checkpoint",
    )
