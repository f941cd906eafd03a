"""One picture per clip: where the source is, and where each sound puts it, over time."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.audio.panning import (
    MAX_LEVEL_DIFFERENCE_DB,
    law_level_difference_db,
    level_difference_db,
    window_level_dbfs,
)
from spatial_v2a.files import written_whole
from spatial_v2a.inference.evaluation.rows import Record
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS, WINDOW_SAMPLES, WINDOW_TICKS


def plot_clip(
    path: Path, record: Record, sounds: dict[str, np.ndarray], *, subtitle: str = ""
) -> None:
    """Writes the pan-over-time picture of one clip as PNG.

    Args:
        path: file to write.
        record: the clip's truth.
        sounds: label to stereo sound [L, 2]; the first is drawn as the ground truth.
        subtitle: a line of figures below the clip's name.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    truth = record.truth
    time_T = np.arange(truth.num_ticks) / TIMING.tick_hz
    limit = MAX_LEVEL_DIFFERENCE_DB
    for bearing_T, style, label in (
        (truth.azimuth_T, ":", "true position"),
        (truth.screen_azimuth_T, "-", "true position, in the picture"),
    ):
        law_T = np.clip(law_level_difference_db(bearing_T), -limit, limit)
        axes.plot(time_T, law_T, style, color="0.55", linewidth=3, label=label, zorder=1)
    for index, (label, audio_LC) in enumerate(sounds.items()):
        difference_W = level_difference_db(audio_LC, window_samples=WINDOW_SAMPLES)
        level_W = window_level_dbfs(audio_LC, window_samples=WINDOW_SAMPLES)
        heard_W = np.where(level_W >= AUDIBLE_DBFS, difference_W, np.nan)
        time_W = (np.arange(len(heard_W)) + 0.5) * WINDOW_TICKS / TIMING.tick_hz
        color = ("black", "tab:red", "tab:blue", "tab:green")[index % 4]
        axes.plot(time_W, heard_W, ".-", color=color, label=label, linewidth=1, markersize=4)
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    axes.set(
        xlabel="time (s)",
        ylabel="level left - right (dB)",
        ylim=(-limit - 2, limit + 2),
        xlim=(0, truth.num_ticks / TIMING.tick_hz),
    )
    name = f"{truth.key} ({truth.class_name or 'no single class'})"
    axes.set_title(name + (f"\n{subtitle}" if subtitle else ""), fontsize=9)
    axes.legend(fontsize=7, loc="upper right", ncols=2)
    with written_whole(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=100, format="png")
