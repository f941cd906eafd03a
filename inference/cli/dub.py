"""`spatial-v2a dub` and `demo`: sound for video files.

Run: spatial-v2a dub VIDEO... [-o OUT] [--original duck] [--takes 4] [--redo 12.5-14]
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.conditioning.console import is_quiet
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    AsJson,
    Checkpoint,
    Detector,
    DetectorWeights,
    Device,
    DeviceName,
    Fov,
    Guidance,
    Nfe,
    Objects,
    Overwrite,
    Seed,
    Sound,
    SpatialGuidance,
    Without,
    checked,
    command_line,
    engine_settings,
    streams,
)
from spatial_v2a.inference.cli.output import Show, json_text, process_age_s, progress, say_loading

if TYPE_CHECKING:
    from spatial_v2a.inference.dub.dubber import Dubber, DubResult
    from spatial_v2a.inference.dub.jobs import DubJob
    from spatial_v2a.inference.dub.many import Outcome, Recipe

log = logging.getLogger(__name__)

MAX_WIDTH = 200
DEMO_CHECKPOINT = "stage"


class Original(StrEnum):
    """What happens to the sound that a video has."""

    drop = "drop"
    keep = "keep"
    duck = "duck"


MIX = "Original sound"
OBJECTS = "Objects"
MANY = "Takes and many files"
MARKS = "Marks"


def dub(
    videos: Annotated[
        list[Path],
        typer.Argument(help="Video files, folders of them, or patterns.", metavar="VIDEO"),
    ],
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
    without: Without = None,
    detector: Detector = None,
    detector_weights: DetectorWeights = None,
    sound: Sound = None,
    fov: Fov = None,
    device: DeviceName = Device.auto,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write OUT's NAME.pan.png: source and sound.")
    ] = False,
    original: Annotated[
        Original,
        typer.Option(
            help="Leave the video's own sound out, keep it, or keep it with the new sound turned"
            " down under it.",
            rich_help_panel=MIX,
        ),
    ] = Original.drop,
    original_gain: Annotated[
        float, typer.Option(help="Gain of the original sound, dB.", rich_help_panel=MIX)
    ] = 0.0,
    gain: Annotated[
        float, typer.Option(help="Gain of the generated sound, dB.", rich_help_panel=MIX)
    ] = 0.0,
    loudness: Annotated[
        float | None,
        typer.Option(
            help="Bring the result to this loudness, LUFS (EBU R 128: -23).",
            rich_help_panel=MIX,
        ),
    ] = None,
    track: Annotated[
        bool,
        typer.Option(
            "--track", help="Add a further sound track, leave the others.", rich_help_panel=MIX
        ),
    ] = False,
    objects: Objects = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            "--given",
            help="JSONL of boxes and depth used instead of detected ones.",
            rich_help_panel=OBJECTS,
        ),
    ] = None,
    mute: Annotated[
        list[int] | None,
        typer.Option(
            help="Object of --annotations to silence; repeatable.", rich_help_panel=OBJECTS
        ),
    ] = None,
    solo: Annotated[
        list[int] | None,
        typer.Option(help="Object to keep alone; repeatable.", rich_help_panel=OBJECTS),
    ] = None,
    move: Annotated[
        list[str] | None,
        typer.Option(
            help="Shift an object's bearing, positive to the left; repeatable.",
            metavar="ID:DEGREES",
            rich_help_panel=OBJECTS,
        ),
    ] = None,
    stems: Annotated[
        Path | None,
        typer.Option(
            help="Also write one sound per object, with its pan and distance, into this folder.",
            metavar="DIR",
            rich_help_panel=OBJECTS,
        ),
    ] = None,
    takes: Annotated[
        int, typer.Option(help="Make N takes with N seeds, and rank them.", rich_help_panel=MANY)
    ] = 1,
    redo: Annotated[
        str | None,
        typer.Option(
            help="Make only this range anew, seconds, e.g. 12.5-14.",
            metavar="FROM-TO",
            rich_help_panel=MANY,
        ),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(
            help="Dub whose sound stays around --redo.",
            show_default="VIDEO's NAME.dubbed",
            rich_help_panel=MANY,
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing", help="Leave videos out whose dub exists.", rich_help_panel=MANY
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(help="Files at once, each with a model.", min=1, rich_help_panel=MANY),
    ] = 1,
    watermark: Annotated[
        bool,
        typer.Option(
            "--watermark/--no-watermark",
            help="Mark the samples inaudibly as synthetic.",
            rich_help_panel=MARKS,
        ),
    ] = True,
    provenance: Annotated[
        bool,
        typer.Option(
            "--provenance/--no-provenance",
            help="State where the sound comes from; signed (C2PA) with a key of yours.",
            rich_help_panel=MARKS,
        ),
    ] = True,
) -> None:
    """Writes VIDEO's picture, untouched, with generated stereo sound."""
    from spatial_v2a.concepts import AUTO, parse_sounds
    from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
    from spatial_v2a.inference.dub.many import Recipe, find_videos
    from spatial_v2a.inference.dub.mixing import MixSettings

    mix = checked(
        MixSettings,
        original=original.value,
        original_gain=original_gain,
        gain=gain,
        loudness=loudness,
    )
    recipe = Recipe(
        checkpoint=checkpoint,
        device=device.value,
        settings=engine_settings(
            seed=seed,
            nfe=nfe,
            guidance=guidance,
            spatial_guidance=spatial_guidance,
            pan_strength=pan_strength,
            without=streams(without),
        ),
        options=checked(
            DubOptions,
            mix=mix,
            takes=takes,
            track=track,
            watermark=watermark,
            provenance=provenance,
        ),
        fov_deg=fov,
        objects=None if objects is None else objects.value,
        detector=detector or AUTO,
        detector_weights=detector_weights,
        sounds=None if sound is None else parse_sounds(sound),
        out=out,
        overwrite=overwrite,
        report=report,
        command=command_line(),
    )
    edits = None
    if mute or solo or move:
        from spatial_v2a.conditioning.track_edits import parse_edits

        edits = parse_edits(mute or (), solo or (), move or ())
    if previous is not None and redo is None:
        raise UserError(f"--previous {previous} belongs to --redo; name the range to make anew")
    found = find_videos(videos)
    if len(found) > 1 or videos[0].is_dir():
        _refuse_for_many(found, annotations=annotations, edits=edits, stems=stems, redo=redo)
        _dub_many(found, recipe, num_jobs=jobs, skips=skip_existing, as_json=as_json)
        return
    if redo is not None:
        _refuse_with_redo(
            annotations=annotations, edits=edits, stems=stems, report=report, takes=takes
        )
        _redo(found[0], recipe, redo, previous, as_json=as_json)
        return
    if skip_existing and _is_there(found[0], recipe, as_json=as_json):
        return
    (job,) = plan_jobs(
        found, out=out, overwrite=overwrite, report=report, annotations=annotations, edits=edits,
        options=recipe.options, seed=seed, stems=stems, command=recipe.command,
    )  # fmt: skip
    say_loading(checkpoint)
    dubber = recipe.make_dubber()
    dubber.check(job)
    _tell(found[0], _run_job(dubber, job), as_json=as_json)


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for demo.mp4 and demo.pan.png.")
    ] = Path("spatial-v2a-demo"),
    seed: Seed = 0,
    device: DeviceName = Device.auto,
    overwrite: Overwrite = False,
) -> None:
    """Dubs the clip that ships with the package and draws true position against heard pan."""
    say_loading(None)
    from spatial_v2a.inference.dub.dubber import Dubber

    job = _plan_demo(out, overwrite=overwrite)
    dubber = Dubber(DEMO_CHECKPOINT, settings=engine_settings(seed=seed), device=device.value)
    _tell(job.source.path, _run_job(dubber, job), as_json=False)


def _refuse_for_many(videos: list[Path], **single: object) -> None:
    """Options that fit one video only."""
    for name, value in single.items():
        if value is not None:
            flag = "--mute, --solo or --move" if name == "edits" else f"--{name} {value}"
            raise UserError(f"{flag} fits one video only; dub the {len(videos)} one by one")


def _refuse_with_redo(*, takes: int, report: bool, **others: object) -> None:
    """Options that a redo has no use for."""
    named = [name for name, value in others.items() if value is not None]
    named += ["takes"] * (takes > 1) + ["report"] * report
    if named:
        flag = "--mute, --solo or --move" if named[0] == "edits" else f"--{named[0]}"
        raise UserError(f"{flag} does not go with --redo; leave it out")


def _redo(
    video: Path, recipe: "Recipe", text: str, previous: Path | None, *, as_json: bool
) -> None:
    say_loading(recipe.checkpoint)
    from spatial_v2a.inference.dub.redo import redo
    from spatial_v2a.inference.dub.redo_plan import plan_redo

    plan = plan_redo(
        video,
        text,
        previous=previous,
        out=recipe.out,
        overwrite=recipe.overwrite,
        options=recipe.options,
        command=recipe.command,
    )
    dubber = replace(recipe, objects=recipe.objects or plan.objects).make_dubber()
    tick_s = float(plan.job.source.timing.tick_s)
    with progress(video.name, total_s=plan.ticks.stop * tick_s) as show:
        result = redo(dubber, plan, on_tick=lambda done: show(done * tick_s))
    _tell(video, result, as_json=as_json)


def _plan_demo(folder: Path, *, overwrite: bool) -> "DubJob":
    """Dubs the bundled clip from its picture alone; the truth only goes to the report."""
    from importlib import resources

    from spatial_v2a.conditioning.video import open_video
    from spatial_v2a.files import check_writable
    from spatial_v2a.inference.dub.jobs import DubJob, Take

    bundled = Path(str(resources.files("spatial_v2a").joinpath("bundled", "demo")))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}); choose another with -o"
        ) from error
    out, report = folder / "demo.mp4", folder / "demo.pan.png"
    for path in (out, report):
        check_writable(path, overwrite=overwrite)
    return DubJob(
        source=open_video(bundled / "clip.mp4"),
        takes=(Take(out, report),),
        truth=bundled / "geometry.jsonl",
        truth_sound=bundled / "truth.flac",
        overwrite=overwrite,
        command=command_line(),
    )


def _dub_many(
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
        _tell_as_json(in_order)
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


def _is_there(video: Path, recipe: "Recipe", *, as_json: bool) -> bool:
    """Whether a video's dub exists already, which is then said."""
    from spatial_v2a.inference.dub.jobs import default_out
    from spatial_v2a.inference.dub.many import Outcome, is_done

    if not is_done(video, recipe):
        return False
    if as_json:
        _tell_as_json([Outcome(video, "skipped")])
    elif not is_quiet():
        print(f"skipped {video}: {default_out(video, recipe.out)} exists")
    return True


def _run_job(dubber: "Dubber", job: "DubJob") -> "DubResult":
    """Dubs one video, with progress on stderr."""
    tick_s = float(job.source.timing.tick_s)
    with progress(job.source.path.name, total_s=float(job.source.duration)) as show:
        return dubber.dub(job, on_tick=lambda done: show(done * tick_s))


def _tell(video: Path, result: "DubResult", *, as_json: bool) -> None:
    """Says what was written and heard, how fast, and how stereo it is."""
    if result.warning:
        log.warning("warning: %s", result.warning)
    if as_json:
        print(json_text({"files": [_row(video, result)]}))
    elif not is_quiet():
        print(_in_words(result))


def _tell_as_json(outcomes: list["Outcome"]) -> None:
    """What became of many videos, as one JSON object."""
    print(json_text({"files": [_outcome_row(outcome) for outcome in outcomes]}))


def _outcome_row(outcome: "Outcome") -> dict[str, object]:
    """One video of many, as JSON values."""
    if outcome.result is not None:
        return _row(outcome.video, outcome.result)
    row: dict[str, object] = {"video": outcome.video, "state": outcome.state}
    return row | ({"message": outcome.message} if outcome.message else {})


def _row(video: Path, result: "DubResult") -> dict[str, object]:
    import numpy as np

    p50_ms, p95_ms = np.percentile(result.tick_ms, [50, 95])
    return {
        "video": video,
        "state": "dubbed",
        "duration_s": result.duration_s,
        "wall_s": result.wall_s,
        "real_time_factor": result.real_time_factor,
        "tick_ms": {"p50": p50_ms, "p95": p95_ms},
        "objects": {
            "share": result.objects.share,
            "heard": [
                {
                    "class": one.class_name,
                    "seconds": one.seconds,
                    "loudest_dbfs": one.loudest_dbfs,
                }
                for one in result.objects.classes
            ],
        },
        "warning": result.warning or None,
        "takes": [
            {
                "out": take.out,
                "report": take.report,
                "sidecars": take.sidecars,
                "stereo": asdict(take.stereo) | {"side_over_mid_db": take.stereo.side_over_mid_db},
                **asdict(take.loudness),
                **asdict(take.finish),
            }
            for take in result.takes
        ],
        "extras": result.extras,
        "settings": result.settings,
    }


def _in_words(result: "DubResult") -> str:
    import numpy as np

    p50_ms, p95_ms = np.percentile(result.tick_ms, [50, 95])
    total_s = process_age_s()
    loading_s = max(0.0, total_s - result.wall_s)
    written = [path for take in result.takes for path in take.files]
    lines = [f"wrote {path}" for path in (*written, *result.extras)]
    lines += [
        f"{result.duration_s:.2f} s of video in {total_s:.1f} s, {loading_s:.1f} s of them loading;"
        f" without that {result.real_time_factor:.2f} x real time;"
        f" per tick p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms",
        result.objects.line,
    ]
    for take in result.takes:
        stereo, name = take.stereo, f" of {take.out.name}" if len(result.takes) > 1 else ""
        lines += [
            f"stereo{name}: side {stereo.side_dbfs:.1f} dBFS, mid {stereo.mid_dbfs:.1f} dBFS"
            f" (side/mid {stereo.side_over_mid_db:+.1f} dB);"
            f" left {stereo.left:.0%}, centre {stereo.centre:.0%}, right {stereo.right:.0%}"
            f" of audible ticks; silent {stereo.silent:.0%}",
            take.levels,
        ]
    return "\n".join(lines + [result.ranking] * bool(result.ranking))
