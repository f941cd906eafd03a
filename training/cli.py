"""Command line `spatial-v2a-train`: record, prepare and train."""

import json
import logging
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from spatial_v2a.conditioning.console import build_command, new_app, run_app
from spatial_v2a.errors import UserError

app = new_app(help="Record, prepare and train: what the models of spatial-v2a are made with.")

ConfigName = Annotated[str, typer.Option(help="Preset name or YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override, section.key=value.")]
DataDirs = Annotated[list[Path], typer.Option(help="Folder of shards; repeatable.")]
SomeDirs = Annotated[list[Path] | None, typer.Option(help="Folder of shards; repeatable.")]
SoundsDir = Annotated[
    Path | None,
    typer.Option(help="Your own recordings, a folder a concept, in place of the bank's."),
]
ValDirs = Annotated[list[Path] | None, typer.Option(help="Validation shards; repeatable.")]
OutDir = Annotated[Path, typer.Option(help="Run folder; the same command resumes it.")]
InitDir = Annotated[Path | None, typer.Option(help="Checkpoint to start from.")]
StartDir = Annotated[Path, typer.Option(help="Checkpoint whose trained parts are the start.")]
StoreDir = Annotated[Path | None, typer.Option(help="Feature store with detected features.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 keeps torch's choice.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print config and sizes, then stop.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")]


@app.command()
def vae(
    out: OutDir,
    data: SomeDirs = None,
    sounds: SoundsDir = None,
    config: ConfigName = "stage",
    val: ValDirs = None,
    init: InitDir = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Trains the stereo autoencoder on the audio of the clips and of the bank."""

    def run(resolved: Any) -> dict[str, float]:
        from spatial_v2a.training.sounds.folder import open_bank
        from spatial_v2a.training.vae import train_vae

        return train_vae(resolved, data or [], val or [], out, init=init, bank=open_bank(sounds))

    folders = [*(data or []), *(val or [])]
    _run_stage(run, config, overrides, folders, out, init, threads, dry_run)


@app.command()
def diffusion(
    out: OutDir,
    init: StartDir,
    data: SomeDirs = None,
    sounds: SoundsDir = None,
    config: ConfigName = "stage",
    val: ValDirs = None,
    store: StoreDir = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Checkpoint that all clips but a walker's learn from: what is kept."),
    ] = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Trains backbone and head with the denoising loss."""

    def run(resolved: Any) -> dict[str, float]:
        from spatial_v2a.training.generator import train_generator
        from spatial_v2a.training.sounds.folder import open_bank

        options = {"init": init, "store_dir": store, "teacher": teacher, "bank": open_bank(sounds)}
        return train_generator(resolved, "diffusion", data or [], val or [], out, **options)

    folders = [*(data or []), *(val or [])]
    _run_stage(run, config, overrides, folders, out, init, threads, dry_run)


@app.command()
def consistency(
    out: OutDir,
    init: StartDir,
    data: SomeDirs = None,
    sounds: SoundsDir = None,
    config: ConfigName = "stage",
    val: ValDirs = None,
    store: StoreDir = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Tunes backbone and head for one to four evaluations per tick (ECT)."""

    def run(resolved: Any) -> dict[str, float]:
        from spatial_v2a.training.generator import train_generator
        from spatial_v2a.training.sounds.folder import open_bank

        options = {"init": init, "store_dir": store, "bank": open_bank(sounds)}
        return train_generator(resolved, "consistency", data or [], val or [], out, **options)

    folders = [*(data or []), *(val or [])]
    _run_stage(run, config, overrides, folders, out, init, threads, dry_run)


def _run_stage(
    run: Callable[[Any], dict[str, float]],
    preset_or_path: str,
    overrides: list[str] | None,
    data: list[Path],
    out: Path,
    init: Path | None,
    threads: int,
    dry_run: bool,
) -> None:
    """Checks what a run needs, prints its config with sizes, trains, and prints its figures.

    Raises:
        UserError: bad config, no shards, no checkpoint, or `out` cannot be made or holds a run of
            another config; before anything is printed.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from spatial_v2a.config import config_to_yaml, load_config
    from spatial_v2a.files import write_text
    from spatial_v2a.model import SpatialV2A
    from spatial_v2a.models.checkpoint import find_checkpoint
    from spatial_v2a.training.loop import claim_run
    from spatial_v2a.training.shards import shard_paths

    config = load_config(preset_or_path, overrides)
    if not dry_run:
        shard_paths(data)
        if init is not None:
            find_checkpoint(init)
        claim_run(out, config)
    console = Console()
    console.print(config_to_yaml(config), markup=False, highlight=False)
    with torch.device("meta"):
        model = SpatialV2A(config)
    sizes = Table("part", "parameters", title=f"{config.name}: trained parts")
    for name, module in model.named_children():
        if count := sum(p.numel() for p in module.parameters()):
            sizes.add_row(name, f"{count:,}")
    console.print(sizes)
    if dry_run:
        return
    if threads:
        torch.set_num_threads(threads)
    figures = run(config)
    write_text(out / "figures.json", json.dumps(figures, indent=2) + "\n")
    table = Table("figure", "value", title=str(out))
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)


@app.command()
def perception(
    data: DataDirs,
    out: Annotated[Path, typer.Option(help="Run folder; the checkpoint is OUT/checkpoint.")],
    val: Annotated[Path | None, typer.Option(help="Folder of validation shards.")] = None,
    config: ConfigName = "stage",
    only: Annotated[str | None, typer.Option(help="One of dino, depth, detector, rtdetr.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time per encoder.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps per encoder, instead of time.")
    ] = None,
    init: InitDir = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-7, help="Highest rate, instead of the encoder's own.")
    ] = None,
    seed: Seed = 0,
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


@app.command()
def extract(
    checkpoint: Annotated[Path, typer.Option(help="Folder with perception.safetensors.")],
    data: DataDirs,
    store: Annotated[Path, typer.Option(help="Feature store to fill.")],
    config: ConfigName = "stage",
    limit: Annotated[int | None, typer.Option(help="Stop after this many clips.")] = None,
    streams: Annotated[
        str | None, typer.Option(help="Streams to extract, with commas.", show_default="all")
    ] = None,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="Where the encoders run.")] = "cpu",
    detector_weights: Annotated[
        Path | None,
        typer.Option(help="Your own detector: a YOLO11 .pt, or a folder of an RT-DETR."),
    ] = None,
) -> None:
    """Fills a feature store with what the frozen perception detects; clips in it are skipped."""
    import torch

    from spatial_v2a.conditioning.perception import CUES, Perception
    from spatial_v2a.conditioning.store import FeatureStore
    from spatial_v2a.config import load_config
    from spatial_v2a.training.shards import ShardIndex, fill_store

    wanted = list(CUES) if streams is None else [name for name in streams.split(",") if name]
    if not wanted or not set(wanted) <= set(CUES):
        raise UserError(f"--streams {streams} is wrong; choose among {','.join(CUES)}")
    if threads:
        torch.set_num_threads(threads)
    settings = load_config(config).perception
    seen = Perception.from_checkpoint(
        checkpoint, settings, cues=wanted, device=device, detector_weights=detector_weights
    )
    num_new = fill_store(FeatureStore(store), seen, ShardIndex(data), limit=limit)
    print(f"{num_new} clips added: {store}")


@app.command()
def classifier(
    data: DataDirs,
    val: DataDirs,
    out: OutDir,
    test: Annotated[
        list[Path] | None, typer.Option(help="Folder of test shards, scored only; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of 32 windows.")] = 1500,
    seed: Seed = 0,
    max_per_clip: Annotated[int, typer.Option(min=1, help="Windows taken from a clip.")] = 6,
) -> None:
    """Trains the benchmark's sound classifier on ground-truth audio and reports its accuracy."""
    from spatial_v2a.training.classifier import make_classifier
    from spatial_v2a.training.shards import shard_paths

    splits = {"data": shard_paths(data), "val": shard_paths(val)}
    if test:
        splits["test"] = shard_paths(test)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    for line in make_classifier(splits, out, num_steps=steps, seed=seed, max_per_clip=max_per_clip):
        print(line, flush=True)


@app.command()
def ablate(
    plan: Annotated[Path, typer.Argument(help="YAML file of the grid.")],
    data: DataDirs,
    test: Annotated[list[Path], typer.Option(help="Folder of shards to score; repeatable.")],
    init: StartDir,
    store: Annotated[Path, typer.Option(help="Feature store with detected features.")],
    out: OutDir,
    clips: Annotated[int | None, typer.Option(min=1, help="Clips to score.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Scoring processes.")] = 1,
    threads: Threads = 0,
) -> None:
    """Trains and scores every variant of a grid on the same data, steps and seeds."""
    import torch

    from spatial_v2a.training.ablation import Inputs, load_plan, run_variant, write_ablation

    grid = load_plan(plan)
    if threads:
        torch.set_num_threads(threads)
    inputs = Inputs(data=data, test=test, init=init, store=store, num_clips=clips, jobs=jobs)
    rows: dict[str, list[dict]] = {}
    for number, variant in enumerate(grid.variants, start=1):
        for seed in grid.seeds:
            print(f"variant {number}/{len(grid.variants)}: {variant.name}, seed {seed}", flush=True)
            row = run_variant(grid, variant, inputs, out, seed=seed)
            rows.setdefault(variant.name, []).append(row)
    setting = (
        f"Plan {plan.name}, base `{grid.config}`, {len(grid.seeds)} seed(s); "
        f"trained on {', '.join(map(str, data))}, scored on {', '.join(map(str, test))}."
    )
    print(write_ablation(out, rows, baseline=grid.baseline, setting=setting))
    print(f"table and picture: {out / 'ablation.md'}, {out / 'ablation.png'}")


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    hours: Annotated[float, typer.Option(min=1e-6, help="Hours of sound to record.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Scenario name, repeatable, or 'all' (the mix).")
    ] = None,
    maps: Annotated[str, typer.Option(help="Maps, or train, val, test, freedoom1.")] = "train",
    workers: Annotated[int, typer.Option(min=1, help="Engines at once.")] = 1,
    clip_seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 10.0,
    sources: Annotated[
        int | None, typer.Option(min=0, max=6, help="Fixed number of sounding actors per clip.")
    ] = None,
    stems_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the clips that also get every source alone."),
    ] = 0.0,
    revision: Annotated[
        int | None,
        typer.Option(
            help="1 to 3 repeat the recordings of earlier recorders.", show_default="latest"
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Begins every clip's key, for recordings that are read together.")
    ] = "",
) -> None:
    """Records Stage clips into webdataset shards; run the same command again to resume."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from spatial_v2a.timing import TIMING
    from spatial_v2a.training.stage import plan
    from spatial_v2a.training.stage.record import record as record_shards

    latest = plan.LATEST_REVISION
    if revision is not None and not 1 <= revision <= latest:
        raise UserError(f"--revision {revision} must be between 1 and {latest}")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", prefix):
        raise UserError(f"--prefix {prefix!r} takes letters, digits, - and _ only")
    settings = plan.RecordingSettings(
        num_clips=plan.num_clips_for(hours, clip_seconds),
        ticks_per_clip=plan.ticks_for(clip_seconds),
        seed=seed,
        scenarios=plan.resolve_scenarios(scenario or ["all"]),
        maps=plan.resolve_maps(maps),
        num_sources=sources,
        stems_share=stems_share,
        revision=revision or latest,
        key_prefix=prefix,
    )
    shards = record_shards(out, settings, num_workers=workers)
    clip_s = settings.ticks_per_clip / TIMING.tick_hz
    console = Console(stderr=True)
    columns = (TextColumn("recording"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    speed = TextColumn("clips, {task.fields[speed]} x real time")
    num_shards = 0
    with Progress(*columns, speed, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("record", total=settings.num_clips, speed="-")
        recorded = 0
        for shard in shards:
            num_shards += 1
            recorded += shard.num_clips if shard.audio_s else 0
            elapsed_s = progress.tasks[0].elapsed or 0.0
            speed_text = f"{recorded * clip_s / elapsed_s:.1f}" if recorded and elapsed_s else "-"
            progress.update(task, advance=shard.num_clips, speed=speed_text)
            if not console.is_terminal:
                console.print(f"{shard.path} {shard.num_clips} clips, {speed_text} x real time")
    print(f"{settings.num_clips} clips in {num_shards} shards of {plan.CLIPS_PER_SHARD}: {out}")


@app.command()
def tracks(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the clips.")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many clips.")] = 4,
    concept: Annotated[str | None, typer.Option(help="What comes first in each of them.")] = None,
    sounds: SoundsDir = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of the collection.")] = 0,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Which part of it.")
    ] = "train",
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of a clip.")] = 8.0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Without the faults of a detector.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Writes simulated clips: what a generator hears of them (wav) and what it sees (png)."""
    import soundfile

    from spatial_v2a.concepts import concept as known_concept
    from spatial_v2a.config import load_config
    from spatial_v2a.files import written_folder
    from spatial_v2a.timing import TIMING
    from spatial_v2a.training.sounds.folder import open_bank
    from spatial_v2a.training.tracks.boxes import NO_FAULTS
    from spatial_v2a.training.tracks.simulate import SimulatedTracks, draw_clip

    if concept is not None:
        known_concept(concept)
    config = load_config("stage", ["perception.sounds=concepts"]).perception
    collection = SimulatedTracks(
        open_bank(sounds),
        config,
        seed=seed,
        split=split,
        duration_s=seconds,
        faults=NO_FAULTS if exact else None,
    )
    with written_folder(out, overwrite=overwrite) as draft:
        for index in range(count):
            clip = collection.clip(index, concept=concept)
            soundfile.write(draft / f"{clip.key}.wav", clip.audio_LC, TIMING.sample_rate_hz)
            draw_clip(clip, draft / f"{clip.key}.png")
            heard = ", ".join(track.concept for track in clip.tracks) or "nothing"
            print(f"{clip.key}: {heard}")


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
