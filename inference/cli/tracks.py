"""`spatial-v2a tracks`: the objects of a video as a file that can be edited and dubbed from.

Run: spatial-v2a tracks VIDEO [-o tracks.jsonl]
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.conditioning.console import is_quiet
from spatial_v2a.inference.cli.options import (
    AsJson,
    Checkpoint,
    Detector,
    DetectorWeights,
    Device,
    DeviceName,
    Fov,
    Overwrite,
    Sound,
)
from spatial_v2a.inference.cli.output import json_text, progress, say_loading

if TYPE_CHECKING:
    from spatial_v2a.inference.dub.track_writer import TracksJob, TracksResult, TrackWriter

# A longer table would push everything else off the screen.
MAX_ROWS = 40


def tracks(
    video: Annotated[Path, typer.Argument(help="Video file.", metavar="VIDEO")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="JSONL to write, or a folder; default: beside VIDEO."),
    ] = None,
    checkpoint: Checkpoint = "stage",
    detector: Detector = None,
    detector_weights: DetectorWeights = None,
    sound: Sound = None,
    fov: Fov = None,
    device: DeviceName = Device.auto,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Also draw NAME.tracks.png.")
    ] = True,
) -> None:
    """Writes the objects that VIDEO shows, to edit and to dub with `dub --annotations`."""
    say_loading(checkpoint)
    from spatial_v2a.concepts import AUTO, parse_sounds
    from spatial_v2a.inference.dub.track_writer import TrackWriter, plan_tracks
    from spatial_v2a.inference.engine.pipeline import Pipeline

    sounds = None if sound is None else parse_sounds(sound)
    job = plan_tracks(video, out=out, overwrite=overwrite, has_picture=picture)
    pipeline = Pipeline(
        checkpoint,
        device=str(device),
        fov_deg=fov,
        detector=detector or AUTO,
        detector_weights=detector_weights,
        sounds=sounds,
        cues=("depth", "boxes"),
        hears=False,
    )
    writer = TrackWriter(pipeline)
    result = _run(writer, job)
    if as_json:
        print(json_text({"files": [_row(video, result)]}))
    elif not is_quiet():
        _tell(result)


def _run(writer: "TrackWriter", job: "TracksJob") -> "TracksResult":
    """Writes one job, with progress on stderr."""
    tick_s = float(job.source.timing.tick_s)
    with progress(job.source.path.name, total_s=float(job.source.duration)) as show:
        return writer.write(job, on_tick=lambda done: show(done * tick_s))


def _row(video: Path, result: "TracksResult") -> dict[str, object]:
    return {
        "video": video,
        "out": result.out,
        "picture": result.picture,
        "duration_s": result.duration_s,
        "num_ticks": result.num_ticks,
        "tracks": [asdict(track) for track in result.tracks],
    }


def _tell(result: "TracksResult") -> None:
    print(f"wrote {result.out}")
    if result.picture is not None:
        print(f"wrote {result.picture}")
    num = len(result.tracks)
    print(f"{num} object{'' if num == 1 else 's'} in {result.duration_s:.2f} s of video")
    if not num:
        return
    print(f"{'id':>4}  {'class':<14} {'from':>8} {'to':>8} {'seen':>8} {'share':>6}  bearing")
    # The objects seen longest, in the order of their ids.
    shown = sorted(result.tracks, key=lambda track: -track.seen_s)[:MAX_ROWS]
    for track in sorted(shown, key=lambda track: track.track_id):
        print(
            f"{track.track_id:>4}  {track.class_name:<14} {track.first_s:>6.2f} s"
            f" {track.last_s:>6.2f} s {track.seen_s:>6.2f} s {track.share:>6.0%} "
            f" {_bearing(track.mean_azimuth_deg)}"
        )
    if num > MAX_ROWS:
        print(f"and {num - MAX_ROWS} that were seen for a shorter time")


def _bearing(azimuth_deg: float) -> str:
    if round(azimuth_deg) == 0:
        return "centre"
    return f"{abs(azimuth_deg):.0f} deg {'left' if azimuth_deg > 0 else 'right'}"
