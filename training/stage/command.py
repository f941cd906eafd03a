"""`spatial-v2a-train record`: records the game engine as a sound stage with known positions."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from spatial_v2a.training.stage.plan import RecordingSettings


def _settings(
    hours: float,
    seed: int,
    scenario: list[str],
    maps: str,
    clip_seconds: float,
    sources: int | None,
    stems_share: float,
    revision: int | None,
    prefix: str,
) -> "RecordingSettings":
    from spatial_v2a.training.stage.plan import (
        LATEST_REVISION,
        RecordingSettings,
        num_clips_for,
        resolve_maps,
        resolve_scenarios,
        ticks_for,
    )

    if revision is None:
        revision = LATEST_REVISION
    if hours <= 0:
        raise UserError(f"--hours {hours} must be positive")
    if sources is not None and not 0 <= sources <= 6:
        raise UserError(f"--sources {sources} must be between 0 and 6")
    if not 0 <= stems_share <= 1:
        raise UserError(f"--stems-share {stems_share} must be between 0 and 1")
    if not 1 <= revision <= LATEST_REVISION:
        raise UserError(f"--revision {revision} must be between 1 and {LATEST_REVISION}")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", prefix):
        raise UserError(f"--prefix {prefix!r} may hold letters, digits, - and _ only")
    return RecordingSettings(
        num_clips=num_clips_for(hours, clip_seconds),
        ticks_per_clip=ticks_for(clip_seconds),
        seed=seed,
        scenarios=resolve_scenarios(scenario),
        maps=resolve_maps(maps),
        num_sources=sources,
        stems_share=stems_share,
        revision=revision,
        key_prefix=prefix,
    )


def record(
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    hours: Annotated[float, typer.Option(help="Hours of sound to record.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Scenario name, repeatable, or 'all' (the mix).")
    ] = None,
    maps: Annotated[str, typer.Option(help="Maps, or train, val, test, freedoom1.")] = "train",
    workers: Annotated[int, typer.Option(help="Engines at once.")] = 1,
    clip_seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 10.0,
    sources: Annotated[
        int | None, typer.Option(help="Fixed number of sounding actors per clip.")
    ] = None,
    stems_share: Annotated[
        float, typer.Option(help="Share of the clips that also get every source alone.")
    ] = 0.0,
    revision: Annotated[
        int | None,
        typer.Option(
            help="1 or 2 repeats the recordings of an earlier recorder.", show_default="latest"
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Begins every clip's key, for recordings that are read together.")
    ] = "",
) -> None:
    """Record Stage clips into webdataset shards; run the same command again to resume."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from spatial_v2a.timing import TIMING
    from spatial_v2a.training.stage.plan import CLIPS_PER_SHARD
    from spatial_v2a.training.stage.record import record as record_shards

    if workers < 1:
        raise UserError(f"--workers {workers} must be at least 1")
    settings = _settings(
        hours,
        seed,
        scenario or ["all"],
        maps,
        clip_seconds,
        sources,
        stems_share,
        revision,
        prefix,
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
    typer.echo(f"{settings.num_clips} clips in {num_shards} shards of {CLIPS_PER_SHARD}: {out}")
