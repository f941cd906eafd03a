"""`spatial-v2a inspect`: the honest stereo report of any audio or video file.

Run: spatial-v2a inspect FILE... [--out DIR] [--json]
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.inference.cli.options import AsJson, Checkpoint, Fov, Overwrite
from spatial_v2a.inference.cli.output import json_text, progress

if TYPE_CHECKING:
    from spatial_v2a.inference.inspect.report import FileReport, InspectJob
    from spatial_v2a.inference.inspect.swap import BoxFinder


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files.", metavar="FILE")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the pictures; default: beside each file."),
    ] = None,
    checkpoint: Checkpoint = "stage",
    no_boxes: Annotated[
        bool, typer.Option("--no-boxes", help="Do not compare the sound with the picture.")
    ] = False,
    fov: Fov = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Says how stereo a sound really is, and whether left and right agree with the picture."""
    from spatial_v2a.inference.inspect.report import as_json as report_json
    from spatial_v2a.inference.inspect.report import as_table, as_text, plan_inspection
    from spatial_v2a.inference.inspect.swap import load_box_finder

    jobs = plan_inspection(files, out=out, overwrite=overwrite)
    finder = None
    if not no_boxes and any(job.track.has_picture for job in jobs):
        finder = load_box_finder(checkpoint, fov_deg=fov)
    reports = []
    for job in jobs:
        reports.append(_run(job, finder))
        if not as_json:
            print(as_text(reports[-1]) + "\n", flush=True)
    if as_json:
        print(json_text({"files": [report_json(report) for report in reports]}))
    elif len(reports) > 1:
        print(as_table(reports))


def _run(job: "InspectJob", finder: "BoxFinder | None") -> "FileReport":
    """Inspects one file, with progress on stderr."""
    from spatial_v2a.inference.inspect.report import inspect_file

    with progress(job.path.name) as show:
        return inspect_file(
            job, finder=finder, on_progress=lambda what, seconds: show(seconds, doing=what)
        )
