"""`spatial-v2a sounds`: what can be heard, and what a checkpoint makes of it.

Run: spatial-v2a sounds [--json]
     spatial-v2a sounds play car -o car.wav
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    Checkpoint,
    Device,
    DeviceName,
    Overwrite,
    Seed,
    engine_settings,
)

if TYPE_CHECKING:
    from spatial_v2a.conditioning.boxes import Box
    from spatial_v2a.timing import Timing

sounds_app = typer.Typer(help="Lists what can be heard, and lets one hear it.")

# From edge to edge of a picture of 90 degrees, at the distance where nothing is lost.
EDGE, SIZE = 0.05, (0.1, 0.4)
MAX_SECONDS = 60.0


@sounds_app.callback(invoke_without_command=True)
def list_them(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Lists the concepts: what each is heard as, and whether it sounds without moving."""
    if ctx.invoked_subcommand is not None:
        return
    from spatial_v2a.concepts import CONCEPTS

    if as_json:
        print(json.dumps({"concepts": [asdict(concept) for concept in CONCEPTS]}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("concept", "heard as", "sounds", "also called")
    for concept in CONCEPTS:
        when = "at rest too" if concept.sounds_at_rest else "while it moves"
        variants = "".join(f" ({concept.name}:{name})" for name in concept.variants)
        heard = "- (silent yet)" if concept.sound is None else concept.sound + variants
        table.add_row(concept.name, heard, when, ", ".join(concept.synonyms[:6]))
    Console(soft_wrap=True).print(table)
    print("change one: spatial-v2a dub VIDEO --sound car=siren,person=silent")
    print("hear one: spatial-v2a sounds play car -o car.wav")


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
