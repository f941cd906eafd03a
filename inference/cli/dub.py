"""`spatial-v2a dub` and `demo`: sound for video files.

Run: spatial-v2a dub VIDEO... [-o OUT] [--original duck] [--takes 4] [--redo 12.5-14]
"""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.dub_many import dub_many, is_there
from spatial_v2a.inference.cli.dub_output import run_job, tell
from spatial_v2a.inference.cli.options import (
    OBJECTS_HELP,
    AsJson,
    Checkpoint,
    Detector,
    DetectorWeights,
    Device,
    DeviceName,
    Guidance,
    HeardObjects,
    Nfe,
    Overwrite,
    Seed,
    Sound,
    SpatialGuidance,
    Stream,
    checked,
    command_line,
    engine_settings,
    say_loading,
)
from spatial_v2a.inference.cli.progress import progress

if TYPE_CHECKING:
    from spatial_v2a.inference.dub.many import Recipe


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
    without: Annotated[
        list[Stream] | None, typer.Option(help="Leave a stream out; repeatable.")
    ] = None,
    detector: Detector = None,
    detector_weights: DetectorWeights = None,
    sound: Sound = None,
    fov: Annotated[
        float | None, typer.Option(help="Horizontal field of view of the picture in degrees.")
    ] = None,
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
    objects: Annotated[
        HeardObjects | None,
        typer.Option(help=OBJECTS_HELP, show_default="apart", rich_help_panel=OBJECTS),
    ] = None,
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
            without=tuple(stream.value for stream in without or []),
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
        dub_many(found, recipe, num_jobs=jobs, skips=skip_existing, as_json=as_json)
        return
    if redo is not None:
        _refuse_with_redo(
            annotations=annotations, edits=edits, stems=stems, report=report, takes=takes
        )
        _redo(found[0], recipe, redo, previous, as_json=as_json)
        return
    if skip_existing and is_there(found[0], recipe, as_json=as_json):
        return
    (job,) = plan_jobs(
        found, out=out, overwrite=overwrite, report=report, annotations=annotations, edits=edits,
        options=recipe.options, seed=seed, stems=stems, command=recipe.command,
    )  # fmt: skip
    say_loading(checkpoint)
    dubber = recipe.make_dubber()
    dubber.check(job)
    tell(found[0], run_job(dubber, job), as_json=as_json)


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
    from spatial_v2a.inference.dub.demo import DEMO_CHECKPOINT, plan_demo
    from spatial_v2a.inference.dub.dubber import Dubber

    job = replace(plan_demo(out, overwrite=overwrite), command=command_line())
    dubber = Dubber(DEMO_CHECKPOINT, settings=engine_settings(seed=seed), device=device.value)
    tell(job.source.path, run_job(dubber, job), as_json=False)


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
    tell(video, result, as_json=as_json)
