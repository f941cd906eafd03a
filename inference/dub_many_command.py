"""`spatial-v2a dub` of many files: one after another or several at once, and a table at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spatial_v2a.inference.dub_output_command import follow, progress_bars

if TYPE_CHECKING:
    from spatial_v2a.inference.dubbing.many import Outcome, Recipe
    from spatial_v2a.inference.jobs import DubJob


def dub_many(videos: list[Path], recipe: "Recipe", *, num_jobs: int, skips: bool) -> None:
    """Dubs the files one after another or at once, and ends with a table and the exit code."""
    from spatial_v2a.inference.dubbing.many import Outcome, check_many, dub_in_processes, is_done

    check_many(videos, recipe)
    outcomes = {
        video: Outcome(video, "skipped") for video in videos if skips and is_done(video, recipe)
    }
    waiting = [video for video in videos if video not in outcomes]
    if num_jobs > 1 and len(waiting) > 1:
        made = dub_in_processes(waiting, recipe, min(num_jobs, len(waiting)))
    else:
        made = _one_by_one(waiting, recipe)
    for number, outcome in enumerate(made, start=1):
        outcomes[outcome.video] = outcome
        print(f"{number}/{len(waiting)} {_line(outcome)}", flush=True)
    _tell_many([outcomes[video] for video in videos])
    if any(outcome.state == "failed" for outcome in outcomes.values()):
        raise typer.Exit(1)


def _one_by_one(videos: list[Path], recipe: "Recipe") -> Iterator["Outcome"]:
    """Outcomes of videos dubbed with one model, which is loaded for the first that needs it."""
    from functools import cache

    from spatial_v2a.inference.dubbing.many import dub_one

    make_dubber = cache(recipe.make_dubber)
    for video in videos:
        with progress_bars() as progress:

            def start(job: "DubJob", progress=progress) -> Callable[[int], None]:
                return follow(progress, job)

            outcome = dub_one(video, recipe, make_dubber, on_start=start)
        yield outcome


def _line(outcome: "Outcome") -> str:
    if outcome.state == "failed":
        return f"failed {outcome.video}: {outcome.message}"
    return "wrote " + ", ".join(str(take.out) for take in outcome.takes)


def _tell_many(outcomes: list["Outcome"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("video", "what", "length", "took", "x real time", "side/mid", "loudness")
    for outcome in outcomes:
        row = [outcome.video.name, outcome.state]
        if outcome.state == "dubbed":
            take = outcome.takes[0]
            speed = outcome.duration_s / outcome.wall_s
            row += [f"{outcome.duration_s:.1f} s", f"{outcome.wall_s:.1f} s", f"{speed:.2f}"]
            row += [f"{take.stereo.side_over_mid_db:+.1f} dB"]
            row += [f"{take.loudness.integrated_lufs:.1f} LUFS"]
        table.add_row(*row)
    Console(soft_wrap=True).print(table)
    count = {state: 0 for state in ("dubbed", "skipped", "failed")}
    for outcome in outcomes:
        count[outcome.state] += 1
    print(f"{count['dubbed']} dubbed, {count['skipped']} skipped, {count['failed']} failed")


def is_there(video: Path, recipe: "Recipe") -> bool:
    """Whether a video's dub exists already, which is then said."""
    from spatial_v2a.inference.dubbing.many import is_done
    from spatial_v2a.inference.jobs import default_out

    if is_done(video, recipe):
        print(f"skipped {video}: {default_out(video, recipe.out)} exists")
        return True
    return False
