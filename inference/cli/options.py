"""Options that several commands share, and how they become settings."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from spatial_v2a.inference.engine.settings import EngineSettings


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Stream(StrEnum):
    """What perception can be left without."""

    depth = "depth"
    boxes = "boxes"
    dino = "dino"


class HeardObjects(StrEnum):
    """How several objects in the picture are heard."""

    apart = "apart"
    together = "together"


CHECKPOINT = typer.Option(
    help="Checkpoint folder, bundled name or hub id.", metavar="NAME", show_default="stage"
)
FOV = typer.Option(help="Horizontal field of view of the picture in degrees.")
_OBJECTS = typer.Option(
    help="How two or more objects in the picture are heard: each by a stream of the engine of its"
    " own, or all by one.",
    show_default="apart",
)
# What is drawn, and from what: the same in every command that makes sound.
Checkpoint = Annotated[str, CHECKPOINT]
Seed = Annotated[int, typer.Option(help="Same seed, same sound.")]
Nfe = Annotated[
    int | None,
    typer.Option(help="Evaluations of the head per tick.", show_default="checkpoint's own"),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Weight of all that is seen; 1 is plain.", show_default="checkpoint's own"),
]
SpatialGuidance = Annotated[float, typer.Option(help="Weight of depth and boxes; 1 is plain.")]
Without = Annotated[list[Stream] | None, typer.Option(help="Leave a stream out; repeatable.")]
Objects = Annotated[HeardObjects | None, _OBJECTS]
Fov = Annotated[float | None, FOV]
Detector = Annotated[
    str | None,
    typer.Option(
        help="Who finds the boxes: auto, stage (the checkpoint's own; yolo, rtdetr say which), or"
        " one of `spatial-v2a detectors`.",
        show_default="auto for dub, tracks and footage, else stage",
        metavar="NAME",
    ),
]
Sound = Annotated[
    str | None,
    typer.Option(
        help="What things sound like: car=engine,person=footsteps,tv=silent.",
        metavar="NAME=SOUND,...",
    ),
]
DetectorWeights = Annotated[
    Path | None,
    typer.Option(
        help="Your own weights for it: a YOLO11 .pt, or a folder of an RT-DETR by transformers.",
        metavar="FILE",
        show_default="checkpoint's own",
    ),
]
DeviceName = Annotated[Device, typer.Option(help="auto takes a GPU when there is one.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object instead of text.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


_arguments: list[str] = []


def keep_command_line(arguments: list[str]) -> None:
    """Keeps what was asked for, to be stated in the files that come of it."""
    _arguments[:] = arguments


def command_line() -> str:
    """The command line as it was given, quoted for a shell."""
    return shlex.join(["spatial-v2a", *_arguments])


def streams(without: list[Stream] | None) -> tuple[str, ...]:
    """Names of the streams to leave out."""
    return tuple(map(str, without or []))


def engine_settings(**values: object) -> "EngineSettings":
    """Settings of the engine from options of the same names.

    Raises:
        UserError: a value out of range, named as its option.
    """
    from spatial_v2a.inference.engine.settings import EngineSettings

    return checked(EngineSettings, **values)


def checked(kind: type, **values: object) -> Any:
    """A strict config from options of the same names.

    Raises:
        UserError: a value out of range, named as its option.
    """
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{flag} {first['input']}: {reason}") from error
