"""`spatial-v2a provenance`: where a file's sound comes from, and whether a signature still holds.

Run: spatial-v2a provenance FILE... [--json]
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from spatial_v2a.inference.marking.manifest import Provenance
    from spatial_v2a.inference.marking.reading import ProvenanceReport


def provenance(
    files: Annotated[list[Path], typer.Argument(help="Any files.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
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
            print("\n".join(map(_harmless, _lines(path, reports[-1]))), flush=True)
    if as_json:
        rows = [_row(path, report) for path, report in zip(files, reports, strict=True)]
        print(json.dumps({"files": rows}, indent=1))
    if any(report is None or report.state != State.valid for report in reports):
        raise typer.Exit(1)


def _lines(path: Path, report: "ProvenanceReport | None") -> list[str]:
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


def _row(path: Path, report: "ProvenanceReport | None") -> dict[str, object]:
    if report is None:
        return {"path": str(path), "state": "none"}
    return asdict(report) | {"path": str(path), "manifest": str(report.manifest)}
