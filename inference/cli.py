"""Command line `spatial-v2a`: dub, live, demo, evaluate, inspect and bench."""

import ctypes
import logging
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from spatial_v2a.inference.dub import Dubber, DubResult
    from spatial_v2a.inference.engine import EngineSettings
    from spatial_v2a.inference.jobs import DubJob

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sound for silent video: stereo that follows the source.",
)


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Stream(StrEnum):
    """What perception can be left without."""

    depth = "depth"
    boxes = "boxes"
    dino = "dino"


Checkpoint = Annotated[
    str, typer.Option(help="Checkpoint folder, bundled name or hub id.", metavar="NAME")
]
Seed = Annotated[int, typer.Option(help="Same seed, same sound.")]
Nfe = Annotated[
    int | None,
    typer.Option(help="Evaluations of the head per tick; default: the checkpoint's own."),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Weight of all that is seen; 1 is plain.", show_default="checkpoint's own"),
]
SpatialGuidance = Annotated[float, typer.Option(help="Weight of depth and boxes; 1 is plain.")]
DeviceName = Annotated[Device, typer.Option(help="auto takes a GPU when there is one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


@app.command()
def dub(
    videos: Annotated[list[Path], typer.Argument(help="Video files.", metavar="VIDEO")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Output file (mp4, m4v, mov, mkv, webm, wav, flac) or folder."
        ),
    ] = None,
    checkpoint: Checkpoint = "stage",
    seed: Seed = 0,
    nfe: Nfe = None,
    guidance: Guidance = None,
    spatial_guidance: SpatialGuidance = 1.0,
    pan_strength: Annotated[
        float, typer.Option(help="Width of the pan, 0..2: 0 is mono, 1 the checkpoint's own.")
    ] = 1.0,
    without: Annotated[
        list[Stream] | None, typer.Option(help="Leave a stream out; repeatable.")
    ] = None,
    given: Annotated[
        Path | None, typer.Option(help="JSONL of boxes and depth used instead of detected ones.")
    ] = None,
    fov: Annotated[
        float | None, typer.Option(help="Horizontal field of view of the picture in degrees.")
    ] = None,
    device: DeviceName = Device.auto,
    overwrite: Overwrite = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write OUT's NAME.pan.png: source and sound.")
    ] = False,
) -> None:
    """Writes VIDEO's picture, untouched, with generated stereo sound."""
    from spatial_v2a.inference.jobs import plan_jobs

    jobs = plan_jobs(videos, out=out, overwrite=overwrite, report=report, given=given)
    settings = _settings(
        seed=seed,
        nfe=nfe,
        guidance=guidance,
        spatial_guidance=spatial_guidance,
        pan_strength=pan_strength,
        without=tuple(stream.value for stream in without or []),
    )
    dubber = _dubber(checkpoint, settings, device, fov)
    for job in jobs:
        dubber.check(job)
    for job in jobs:
        _tell(_run(dubber, job))


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for demo.mp4 and demo.pan.png.")
    ] = Path("spatial-v2a-demo"),
    seed: Seed = 0,
    device: DeviceName = Device.auto,
    overwrite: Overwrite = False,
) -> None:
    """Dubs the clip that ships with the package and draws true position against heard pan."""
    from spatial_v2a.inference.demo import DEMO_CHECKPOINT, plan_demo

    job = plan_demo(out, overwrite=overwrite)
    _tell(_run(_dubber(DEMO_CHECKPOINT, _settings(seed=seed), device, None), job))


def _settings(**values: object) -> "EngineSettings":
    from pydantic import ValidationError

    from spatial_v2a.inference.engine import EngineSettings

    try:
        return EngineSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{flag} {first['input']}: {reason}") from error


def _dubber(
    checkpoint: str, settings: "EngineSettings", device: Device, fov: float | None
) -> "Dubber":
    from spatial_v2a.inference.dub import Dubber

    return Dubber(checkpoint, settings=settings, device=device.value, fov_deg=fov)


def _run(dubber: "Dubber", job: "DubJob") -> "DubResult":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[seconds]:.1f} s of sound"),
        TimeRemainingColumn(),
    )
    tick_s = float(job.source.timing.tick_s)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(job.source.path.name, total=job.source.num_ticks, seconds=0.0)
        return dubber.dub(
            job,
            on_tick=lambda done: progress.update(task, completed=done, seconds=done * tick_s),
        )


def _tell(result: "DubResult") -> None:
    import numpy as np

    p50_ms, p95_ms = np.percentile(result.tick_ms, [50, 95])
    stereo = result.stereo
    print(f"wrote {result.out}")
    if result.report is not None:
        print(f"wrote {result.report}")
    print(
        f"{result.duration_s:.2f} s of video in {result.wall_s:.1f} s:"
        f" {result.real_time_factor:.2f} x real time;"
        f" per tick p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms"
    )
    print(
        f"stereo: side {stereo.side_dbfs:.1f} dBFS, mid {stereo.mid_dbfs:.1f} dBFS"
        f" (side/mid {stereo.side_over_mid_db:+.1f} dB);"
        f" left {stereo.left:.0%}, centre {stereo.centre:.0%}, right {stereo.right:.0%}"
        f" of audible ticks; silent {stereo.silent:.0%}"
    )


def _register_evaluate() -> None:
    from spatial_v2a.inference.evaluate_command import evaluate

    app.command()(evaluate)


_register_evaluate()


def _register_inspect() -> None:
    from spatial_v2a.inference.inspect_command import inspect

    app.command()(inspect)


_register_inspect()


def _register_bench() -> None:
    from spatial_v2a.inference.bench_command import bench

    app.command()(bench)


_register_bench()


def _register_live() -> None:
    from spatial_v2a.inference.live_command import live

    app.command()(live)


_register_live()


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    _keep_memory_flat()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Remarks of a library on its own defaults are no business of someone who dubs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # A polite kill must clean up like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def _keep_memory_flat() -> None:
    """One arena for all threads, where glibc allocates.

    With an arena a thread, what one thread allocates and another frees leaves holes: about 4 MB
    more with every video opened. Must come before the first thread.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8  # malloc.h


def run(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=arguments or ["--help"], prog_name="spatial-v2a", standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _refuse(str(error))
    except _USAGE_ERROR as error:
        return _refuse(f"{error.format_message()} See spatial-v2a --help")
    except (typer.Abort, KeyboardInterrupt):
        print("stopped; no unfinished file is left", file=sys.stderr)
        return 130


# Typer carries its own copy of click and exports only this subclass of its usage errors.
_USAGE_ERROR = typer.BadParameter.__mro__[1]


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
