"""What `spatial-v2a dub` shows while it works and says at the end."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from spatial_v2a.inference.dub import Dubber, DubResult
    from spatial_v2a.inference.jobs import DubJob


def run_job(dubber: "Dubber", job: "DubJob") -> "DubResult":
    """Dubs one video, with progress on stderr."""
    with progress_bars() as progress:
        return dubber.dub(job, on_tick=follow(progress, job))


def tell(result: "DubResult") -> None:
    """Says what was written, how fast, and how stereo it is."""
    import numpy as np

    p50_ms, p95_ms = np.percentile(result.tick_ms, [50, 95])
    for take in result.takes:
        for path in take.files:
            print(f"wrote {path}")
    for path in result.extras:
        print(f"wrote {path}")
    print(
        f"{result.duration_s:.2f} s of video in {result.wall_s:.1f} s:"
        f" {result.real_time_factor:.2f} x real time;"
        f" per tick p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms"
    )
    for take in result.takes:
        stereo, name = take.stereo, f" of {take.out.name}" if len(result.takes) > 1 else ""
        print(
            f"stereo{name}: side {stereo.side_dbfs:.1f} dBFS, mid {stereo.mid_dbfs:.1f} dBFS"
            f" (side/mid {stereo.side_over_mid_db:+.1f} dB);"
            f" left {stereo.left:.0%}, centre {stereo.centre:.0%}, right {stereo.right:.0%}"
            f" of audible ticks; silent {stereo.silent:.0%}"
        )
        print(take.levels)
    if result.ranking:
        print(result.ranking)


def progress_bars() -> "Progress":
    """Bars on stderr that go when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[seconds]:.1f} s of sound"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def follow(progress: "Progress", job: "DubJob") -> Callable[[int], None]:
    """A callback that moves the bar of a job."""
    tick_s = float(job.source.timing.tick_s)
    task = progress.add_task(job.source.path.name, total=job.source.num_ticks, seconds=0.0)
    return lambda done: progress.update(task, completed=done, seconds=done * tick_s)
