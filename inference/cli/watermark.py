"""`spatial-v2a watermark`: looks for the mark of synthetic sound in audio and video files.

Run: spatial-v2a watermark detect FILE... [--json]
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.inference.cli.plain_json import json_text

if TYPE_CHECKING:
    from spatial_v2a.inference.marking.watermark_detect import WatermarkFinding

watermark_app = typer.Typer(
    help="Looks for the inaudible mark that every dub carries.", no_args_is_help=True
)


@watermark_app.callback()
def _group() -> None:
    """Looks for the inaudible mark that every dub carries."""


@watermark_app.command()
def detect(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Says of each file whether its sound is marked as synthetic; exits with 1 if one is not."""
    from spatial_v2a.inference.marking.watermark_detect import detect_file

    findings = []
    for file in files:
        findings.append(detect_file(file))
        if not as_json:
            print(f"{file}: {_verdict(findings[-1])}", flush=True)
    if as_json:
        rows = [
            {"file": str(file), **asdict(finding)}
            for file, finding in zip(files, findings, strict=True)
        ]
        print(json_text({"files": rows}))
    if not all(finding.is_marked for finding in findings):
        raise typer.Exit(1)


def _verdict(finding: "WatermarkFinding") -> str:
    from spatial_v2a.inference.marking.watermark_detect import MIN_LENGTH_S

    score = f"score {finding.score:.1f}, found from {finding.threshold:.1f}"
    if finding.is_marked:
        return f"watermark found ({score})"
    if not finding.has_enough_sound and finding.length_s < MIN_LENGTH_S:
        return f"too short to tell ({finding.length_s:.1f} s; it takes {MIN_LENGTH_S:g} s; {score})"
    if not finding.has_enough_sound:
        return f"too little sound to tell ({finding.num_seconds:.1f} s of sound; {score})"
    return f"no watermark found ({score})"
