"""`SpatialV2A.dub`: one video file dubbed by a model that is loaded already."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from spatial_v2a.concepts import parse_sounds
from spatial_v2a.conditioning.track_edits import TrackEdits
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.inference.dub.dubber import Dubber, DubResult
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.dub.mixing import MixSettings
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.object_mix import DEFAULT_OBJECTS, Objects
from spatial_v2a.inference.engine.stream import checked_config
from spatial_v2a.model import SpatialV2A

# What the statement of origin says in place of a command line.
COMMAND = "SpatialV2A.dub"


def dub_video(
    model: SpatialV2A,
    video: str | Path,
    out: str | Path | None,
    *,
    seed: int,
    nfe: int | None,
    guidance: float | None,
    spatial_guidance: float,
    pan_strength: float,
    without: Sequence[str],
    detector: str,
    sound: str | None,
    fov_deg: float | None,
    objects: Objects | None,
    original: Literal["drop", "keep", "duck"],
    original_gain: float,
    gain: float,
    loudness: float | None,
    track: bool,
    annotations: str | Path | None,
    mute: Sequence[int],
    solo: Sequence[int],
    move: Mapping[int, float] | None,
    stems: str | Path | None,
    takes: int,
    redo: tuple[float, float] | None,
    previous: str | Path | None,
    report: bool,
    overwrite: bool,
    watermark: bool,
    provenance: bool,
    on_tick: Callable[[int], None] | None,
) -> DubResult:
    """Dubs one video; arguments and errors as for `SpatialV2A.dub`."""
    settings = checked_config(
        EngineSettings,
        seed=seed,
        nfe=nfe,
        guidance=guidance,
        spatial_guidance=spatial_guidance,
        pan_strength=pan_strength,
        without=as_tuple(without, name="without"),
    )
    mix = checked_config(
        MixSettings,
        original=original,
        original_gain=original_gain,
        gain=gain,
        loudness=loudness,
    )
    options = checked_config(
        DubOptions, mix=mix, takes=takes, track=track, watermark=watermark, provenance=provenance
    )
    shifts = tuple((move or {}).items())
    edits = TrackEdits(as_tuple(mute, name="mute"), as_tuple(solo, name="solo"), shifts)
    if redo is not None:
        _refuse_with_redo(
            annotations=annotations, stems=stems, edits=edits.ids, report=report, takes=takes > 1
        )
    elif previous is not None:
        raise UserError(f"previous={str(previous)!r} belongs to redo; name the range to make again")
    sounds = None if sound is None else parse_sounds(sound)
    out = None if out is None else Path(out)

    def make_dubber(objects: Objects | None) -> Dubber:
        return Dubber(
            model,
            settings=settings,
            fov_deg=fov_deg,
            objects=objects or DEFAULT_OBJECTS,
            detector=detector,
            sounds=sounds,
        )

    if redo is not None:
        from spatial_v2a.inference.dub.redo import redo as redo_range
        from spatial_v2a.inference.dub.redo_plan import plan_redo

        plan = plan_redo(
            Path(video),
            f"{redo[0]:f}-{redo[1]:f}",
            previous=None if previous is None else Path(previous),
            out=out,
            overwrite=overwrite,
            options=options,
            command=COMMAND,
        )
        return redo_range(make_dubber(objects or plan.objects), plan, on_tick=on_tick)
    (job,) = plan_jobs(
        [Path(video)],
        out=out,
        overwrite=overwrite,
        report=report,
        annotations=None if annotations is None else Path(annotations),
        edits=edits if edits.ids else None,
        options=options,
        seed=seed,
        stems=None if stems is None else Path(stems),
        command=COMMAND,
    )
    dubber = make_dubber(objects)
    dubber.check(job)
    return dubber.dub(job, on_tick=on_tick)


def _refuse_with_redo(**others: object) -> None:
    """Options that a redo has no use for."""
    for name, value in others.items():
        if value:
            name = "mute, solo or move" if name == "edits" else name
            raise UserError(f"{name} does not go with redo; leave it out")
