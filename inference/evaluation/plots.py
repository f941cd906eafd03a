"""One picture per clip or item: where the source or the boxes are and where each sound lies."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.audio.panning import MAX_LEVEL_DIFFERENCE_DB, law_level_difference_db
from spatial_v2a.audio.stereo import (
    level_dbfs,
    level_difference_db,
    pan_curve,
    tick_energies,
    window_energies,
)
from spatial_v2a.files import written_whole
from spatial_v2a.inference.evaluation.originals import FootageRecord
from spatial_v2a.inference.evaluation.rows import ClipRecord
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS, WINDOW_SAMPLES, WINDOW_TICKS


def plot_clip(
    path: Path, record: ClipRecord, sounds: dict[str, np.ndarray], *, subtitle: str = ""
) -> None:
    """Writes the pan-over-time picture of one clip as PNG.

    Args:
        path: file to write.
        record: the clip's truth.
        sounds: label to stereo sound [L, 2]; the first is drawn as the ground truth.
        subtitle: a line of figures below the clip's name.
    """
    figure, axes = _pan_axes(record.num_ticks, ylabel="level left - right (dB)")
    truth = record.truth
    _draw_law(axes, truth.azimuth_T, ":", label="true position")
    _draw_law(axes, truth.screen_azimuth_T, "-", label="true position, in the picture")
    for index, (label, audio_LC) in enumerate(sounds.items()):
        energies_WE = window_energies(audio_LC, window_samples=WINDOW_SAMPLES)
        is_heard_W = level_dbfs(energies_WE) >= AUDIBLE_DBFS
        heard_W = np.where(is_heard_W, level_difference_db(energies_WE), np.nan)
        time_W = (np.arange(len(heard_W)) + 0.5) * WINDOW_TICKS / TIMING.tick_hz
        color = ("black", "tab:red", "tab:blue", "tab:green")[index % 4]
        axes.plot(time_W, heard_W, ".-", color=color, label=label, linewidth=1, markersize=4)
    name = f"{truth.key} ({truth.class_name or 'no single class'})"
    axes.set_title(name + (f"\n{subtitle}" if subtitle else ""), fontsize=9)
    axes.legend(fontsize=7, loc="upper right", ncols=2)
    _save(figure, path)


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
    label = "right   level left - right (dB)   left"
    figure, axes = _pan_axes(record.num_ticks, ylabel=label)
    boxes = {"color": "0.7", "markersize": 3, "zorder": 2}
    boxes["label"] = "largest detected box, through the engine's law"
    _draw_law(axes, record.picture.box_azimuth_T, ".", **boxes)
    if original_LC is not None:
        _draw_pan(axes, original_LC, color="black", linestyle="--", label="original track")
    _draw_pan(axes, model_LC, color="tab:red", label="model")
    turned = "model on the mirrored picture, turned back"
    _draw_pan(axes, mirrored_LC, sign=-1, color="tab:blue", linewidth=0.8, label=turned)
    axes.set_title(f"{record.key} (original: {record.original.kind})", fontsize=9)
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    _save(figure, path)


def _pan_axes(num_ticks: int, *, ylabel: str) -> tuple[Figure, Axes]:
    """A picture of level differences over so many ticks."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    limit = MAX_LEVEL_DIFFERENCE_DB + 2
    axes.set(xlabel="time (s)", ylabel=ylabel)
    axes.set(ylim=(-limit, limit), xlim=(0, num_ticks / TIMING.tick_hz))
    return figure, axes


def _draw_law(axes: Axes, azimuth_T: np.ndarray, marks: str, **style) -> None:
    """Bearings, through the engine's law."""
    law_T = law_level_difference_db(azimuth_T)
    law_T = np.clip(law_T, -MAX_LEVEL_DIFFERENCE_DB, MAX_LEVEL_DIFFERENCE_DB)
    style = {"color": "0.55", "linewidth": 3, "zorder": 1} | style
    axes.plot(np.arange(len(law_T)) / TIMING.tick_hz, law_T, marks, **style)


def _draw_pan(axes: Axes, audio_LC: np.ndarray, *, sign: int = 1, **style) -> None:
    energies_TE = tick_energies(audio_LC, samples_per_tick=TIMING.samples_per_tick)
    curve_T = sign * pan_curve(energies_TE)
    axes.plot((np.arange(len(curve_T)) + 0.5) / TIMING.tick_hz, curve_T, **style)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=100, format="png")
