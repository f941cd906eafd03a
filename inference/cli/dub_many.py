"""`spatial-v2a dub` of many files: one after another or several at once, and a table at the end."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spatial_v2a.conditioning.console import is_quiet
from spatial_v2a.inference.cli.dub_output import tell_as_json
from spatial_v2a.inference.cli.options import say_loading
from spatial_v2a.inference.cli.progress import Show, progress

if TYPE_CHECKING:
    from spatial_v2a.inference.dub.many import Outcome, Recipe

log = logging.getLogger(__name__)

MAX_WIDTH = 200


def dub_many(
    videos: list[Path], recipe: "Recipe", *, num_jobs: int, skips: bool, as_json: bool
) -> None:
    """Dubs the files one after another or at once, and ends with a table and the exit code."""
    from spatial_v2a.inference.dub.many import Outcome, check_many, is_done

    check_many(videos, recipe)
    say_loading(recipe.checkpoint)
    outcomes = {
        video: Outcome(video, "skipped") for video in videos if skips and is_done(video, recipe)
    }
    waiting = [video for video in videos if video not in outcomes]
    for number, outcome in enumerate(_dubbed(waiting, recipe, num_jobs), start=1):
        outcomes[outcome.video] = outcome
        if not is_quiet():
            typer.echo(f"{number}/{len(waiting)} {_line(outcome)}", err=as_json)
    in_order = [outcomes[video] for video in videos]
    if as_json:
        tell_as_json(in_order)
    elif not is_quiet():
        _tell_many(in_order)
    for outcome in in_order:
        if outcome.result is not None and outcome.result.warning:
            log.warning("warning: %s", outcome.result.warning)
    if any(outcome.state == "failed" for outcome in outcomes.values()):
        raise typer.Exit(1)


def _dubbed(videos: list[Path], recipe: "Recipe", num_jobs: int) -> Iterator["Outcome"]:
    """Outcomes of videos as they end, with progress on stderr where it is one video at a time."""
    from spatial_v2a.inference.dub.many import dub_in_processes
    from spatial_v2a.timing import TIMING

    shows: dict[Path, Show] = {}
    with ExitStack() as bars:

        def follow(video: Path, num_done: int, num_ticks: int) -> None:
            if video not in shows:
                bar = progress(video.name, total_s=float(num_ticks * TIMING.tick_s))
                shows[video] = bars.enter_context(bar)
            shows[video](float(num_done * TIMING.tick_s))

        on_tick = follow if num_jobs == 1 else None
        for outcome in dub_in_processes(videos, recipe, num_jobs, on_tick=on_tick):
            bars.close()
            yield outcome


def _line(outcome: "Outcome") -> str:
    if outcome.result is None:
        return f"failed {outcome.video}: {outcome.message}"
    return "wrote " + ", ".join(str(take.out) for take in outcome.result.takes)


def _tell_many(outcomes: list["Outcome"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "video", "what", "length", "took", "x real time", "side/mid", "loudness", "objects"
    )
    for outcome in outcomes:
        row = [Text(outcome.video.name), outcome.state]
        if (result := outcome.result) is not None:
            take = result.takes[0]
            row += [f"{result.duration_s:.1f} s", f"{result.wall_s:.1f} s"]
            row += [f"{result.real_time_factor:.2f}"]
            row += [f"{take.stereo.side_over_mid_db:+.1f} dB"]
            row += [f"{take.loudness.integrated_lufs:.1f} LUFS"]
            row += [f"{result.objects.share:.0%}: {result.objects.names}"]
        table.add_row(*row)
    # Nothing is known of the width where the table goes into a file or a pipe.
    width = None if sys.stdout.isatty() else MAX_WIDTH
    Console(soft_wrap=True, width=width).print(table)
    count = {state: 0 for state in ("dubbed", "skipped", "failed")}
    for outcome in outcomes:
        count[outcome.state] += 1
    print(f"{count['dubbed']} dubbed, {count['skipped']} skipped, {count['failed']} failed")


def is_there(video: Path, recipe: "Recipe", *, as_json: bool) -> bool:
    """Whether a video's dub exists already, which is then said."""
    from spatial_v2a.inference.dub.jobs import default_out
    from spatial_v2a.inference.dub.many import Outcome, is_done

    if not is_done(video, recipe):
        return False
    if as_json:
        tell_as_json([Outcome(video, "skipped")])
    elif not is_quiet():
        print(f"skipped {video}: {default_out(video, recipe.out)} exists")
    return True
