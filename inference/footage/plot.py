"""One picture per item: where the boxes are and where each sound lies, over time."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.audio.panning import MAX_LEVEL_DIFFERENCE_DB, law_level_difference_db
from spatial_v2a.audio.stereo import pan_curve, tick_energies
from spatial_v2a.files import written_whole
from spatial_v2a.inference.footage.rows import FootageRecord
from spatial_v2a.timing import TIMING


def plot_item(
    path: Path,
    record: FootageRecord,
    *,
    model_LC: np.ndarray,
    mirrored_LC: np.ndarray,
    original_LC: np.ndarray | None,
) -> None:
    """Writes the pan-over-time picture of one item as PNG.

    Args:
        path: file to write; its folder is made.
        record: the item.
        model_LC: the model's sound.
        mirrored_LC: its sound of the mirrored picture; drawn turned, so that both should agree.
        original_LC: the sound the item came with, or None.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes, limit = figure.add_subplot(), MAX_LEVEL_DIFFERENCE_DB
    boxes_T = law_level_difference_db(record.largest_box_deg_T())
    axes.plot(
        np.arange(len(boxes_T)) / TIMING.tick_hz, np.clip(boxes_T, -limit, limit), ".",
        color="0.7", markersize=3, label="largest detected box, through the engine's law",
    )  # fmt: skip
    if original_LC is not None:
        _draw(axes, original_LC, color="black", linestyle="--", label="original track")
    _draw(axes, model_LC, color="tab:red", label="model")
    _draw(
        axes, mirrored_LC, sign=-1, color="tab:blue", linewidth=0.8,
        label="model on the mirrored picture, turned back",
    )  # fmt: skip
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    axes.set(
        xlabel="time (s)",
        ylabel="right   level left - right (dB)   left",
        ylim=(-limit - 2, limit + 2),
        xlim=(0, record.item.num_ticks / TIMING.tick_hz),
    )
    axes.set_title(f"{record.item.key} (original: {record.original.kind})", fontsize=9)
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=100, format="png")


def _draw(axes, audio_LC: np.ndarray, *, sign: int = 1, **style) -> None:
    energies_TE = tick_energies(audio_LC, samples_per_tick=TIMING.samples_per_tick)
    curve_T = sign * pan_curve(energies_TE)
    axes.plot((np.arange(len(curve_T)) + 0.5) / TIMING.tick_hz, curve_T, **style)
