"""`spatial-v2a provenance` and `spatial-v2a watermark`: what marks a file's sound as synthetic.

Run: spatial-v2a provenance FILE... [--json]
     spatial-v2a watermark detect FILE... [--json]
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import AsJson
from spatial_v2a.inference.cli.output import json_text

if TYPE_CHECKING:
    from spatial_v2a.inference.marking.manifest import Provenance
    from spatial_v2a.inference.marking.reading import ProvenanceReport
    from spatial_v2a.inference.marking.watermark_detect import WatermarkFinding

watermark_app = typer.Typer(
    help="Looks for the inaudible mark that every dub carries.", no_args_is_help=True
)


def provenance(
    files: Annotated[list[Path], typer.Argument(help="Any files.", metavar="FILE")],
    as_json: AsJson = False,
) -> None:
    """Says how a file's sound was made, and whether the file changed since it was signed.

    The exit code is 1 when a file has no valid signature.
    """
    from spatial_v2a.inference.marking.reading import State, read_provenance

    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError(f"no file {missing[0]}; check the name")
    reports = []
    for path in files:
        reports.append(read_provenance(path))
        if not as_json:
            print("\n".join(map(_harmless, _report_lines(path, reports[-1]))), flush=True)
    if as_json:
        rows = [_report_row(path, report) for path, report in zip(files, reports, strict=True)]
        print(json.dumps({"files": rows}, indent=1))
    if any(report is None or report.state != State.valid for report in reports):
        raise typer.Exit(1)


def _report_lines(path: Path, report: "ProvenanceReport | None") -> list[str]:
    if report is None:
        return [f"{path}: no statement"]
    verdict = {
        "valid": "valid, unchanged since it was signed",
        "uncertified": "unchanged, but its certificate does not hold",
        "tampered": "TAMPERED, changed since it was signed",
        "unsigned": "NOT SIGNED, anyone could have written or changed this",
    }[report.state]
    if report.reasons:
        verdict += f" ({', '.join(report.reasons)})"
    signed_at, is_signed = report.signed_at or "not stated", report.state != "unsigned"
    lines = [
        f"{path}: {verdict}",
        f"  statement   {'in the file' if report.manifest == path else report.manifest}",
        f"  signed by   {report.issuer or 'unknown'} (identity not checked)" if is_signed else "",
        f"  {'signed at ' if is_signed else 'written at'}  {signed_at} (as it says itself)",
        f"  content     {report.source_type or 'not stated'}",
    ]
    lines = [line for line in lines if line]
    if report.provenance is None:
        return [*lines, "  made by     another tool"]
    return lines + _statement(report.provenance)


def _harmless(text: str) -> str:
    """A manifest is a stranger's text: what could steer the terminal is spelt out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _statement(made: "Provenance") -> list[str]:
    settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in made.settings.items())
    return [
        f"  made by     spatial-v2a {made.version}",
        f"  model       {made.model}, weights sha256 {made.checkpoint_sha256}",
        f"  seed        {made.seed}",
        f"  command     {made.command}",
        f"  settings    {settings or 'none'}",
    ]


def _report_row(path: Path, report: "ProvenanceReport | None") -> dict[str, object]:
    if report is None:
        return {"path": str(path), "state": "none"}
    return asdict(report) | {"path": str(path), "manifest": str(report.manifest)}


@watermark_app.callback()
def _group() -> None:
    """Looks for the inaudible mark that every dub carries."""


@watermark_app.command()
def detect(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files.", metavar="FILE")],
    as_json: AsJson = False,
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
