"""`spatial-v2a-train tracks`: a few simulated clips to listen to and to look at."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from spatial_v2a.concepts import concept as known_concept
from spatial_v2a.config import load_config
from spatial_v2a.features import BOX_FIELDS
from spatial_v2a.files import written_folder
from spatial_v2a.timing import TIMING
from spatial_v2a.training.sounds.folder import open_bank
from spatial_v2a.training.tracks.boxes import NO_FAULTS
from spatial_v2a.training.tracks.simulate import SimulatedClip, SimulatedTracks


def tracks(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the clips.")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many clips.")] = 4,
    concept: Annotated[str | None, typer.Option(help="What comes first in each of them.")] = None,
    sounds: Annotated[
        Path | None, typer.Option(help="Your own recordings, a folder a concept.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of the collection.")] = 0,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Which part of it.")
    ] = "train",
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of a clip.")] = 8.0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Without the faults of a detector.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Writes simulated clips: what a generator hears of them (wav) and what it sees (png)."""
    if concept is not None:
        known_concept(concept)
    config = load_config("stage", ["perception.sounds=concepts"]).perception
    collection = SimulatedTracks(
        open_bank(sounds),
        config,
        seed=seed,
        split=split,
        duration_s=seconds,
        faults=NO_FAULTS if exact else None,
    )
    console = Console()
    with written_folder(out, overwrite=overwrite) as draft:
        for index in range(count):
            clip = collection.clip(index, concept=concept)
            soundfile.write(draft / f"{clip.key}.wav", clip.audio_LC, TIMING.sample_rate_hz)
            draw(clip, draft / f"{clip.key}.png")
            heard = ", ".join(track.concept for track in clip.tracks) or "nothing"
            console.print(f"{clip.key}: {heard}", markup=False, highlight=False)


def draw(clip: SimulatedClip, path: Path) -> None:
    """A picture of a clip: bearing and distance of every thing, its events, and the boxes seen."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    bearing, distance, columns = figure.subplots(3, sharex=True)
    for number, track in enumerate(clip.tracks):
        time_s = np.arange(len(track.azimuth_deg_T)) / TIMING.tick_hz
        colour = f"C{number}"
        bearing.plot(time_s, track.azimuth_deg_T, colour, label=track.concept)
        distance.semilogy(time_s, track.distance_T, colour)
        for onset_s in track.onsets_s[:200]:
            bearing.axvline(onset_s, color=colour, alpha=0.2, linewidth=0.8)
    for edge in (clip.fov_deg / 2, -clip.fov_deg / 2):
        bearing.axhline(edge, color="grey", linestyle=":")
    mask_TK = clip.features.box_mask_BTK[0].numpy()
    cx_TK = clip.features.boxes_BTKF[0, ..., BOX_FIELDS.index("cx")].numpy()
    ticks, slots = np.nonzero(mask_TK)
    columns.scatter(ticks / TIMING.tick_hz, cx_TK[ticks, slots], s=3)
    bearing.set_ylabel("bearing, degrees to the left")
    distance.set_ylabel("distance, m")
    columns.set(ylabel="boxes: column", xlabel="s", ylim=(1, 0))
    if clip.tracks:
        bearing.legend(loc="upper right")
    figure.savefig(path, dpi=80)
