"""The stereo picture: a heat map of level difference over time, and the level below it.

Legend: T ticks, N columns of the picture, E energies, B bins of level difference.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.audio.panning import MAX_LEVEL_DIFFERENCE_DB, law_level_difference_db
from spatial_v2a.audio.stereo import SIDED_DB, level_dbfs, level_difference_db, pan_curve
from spatial_v2a.inference.inspect.measure import Measured
from spatial_v2a.inference.inspect.swap import BearingTrack
from spatial_v2a.timing import TIMING

MAX_COLUMNS = 600
# More dots than this would hide the sound below them.
MAX_DOTS = 300
BIN_DB = 1.0
# Colours reach this far below the loudest cell.
RANGE_DB = 50.0
FLOOR_DBFS = -70.0


def draw_picture(
    path: Path, measured: Measured, *, title: str, bearings: BearingTrack | None = None
) -> None:
    """Writes the picture as PNG.

    Args:
        path: file to write.
        measured: the sound.
        title: name of the file.
        bearings: largest boxes, drawn where the game engine's panning law would put their sound.
    """
    figure = Figure(figsize=(11, 6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    place, level = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    energies_TE, end_s = measured.energies_TE, max(measured.duration_s, 1e-3)
    if measured.stereo is None:
        text = f"{measured.kind}: there is no level difference to show"
        place.text(0.5, 0.5, text, ha="center", va="center", transform=place.transAxes)
    else:
        cells_BN = heat_map(energies_TE)
        limit = MAX_LEVEL_DIFFERENCE_DB + BIN_DB / 2
        image = place.imshow(
            cells_BN, origin="lower", aspect="auto", extent=(0, end_s, -limit, limit),
            cmap="magma", vmin=-RANGE_DB, vmax=0, interpolation="nearest"
        )  # fmt: skip
        figure.colorbar(image, ax=place, pad=0.01, label="energy (dB below the loudest cell)")
        _draw_curves(place, measured, bearings)
    place.set_title(_headline(title, measured), fontsize=10)
    _label_sides(place)
    loudness_N = np.maximum(level_dbfs(_columns(energies_TE)), FLOOR_DBFS)
    times_N = (np.arange(len(loudness_N)) + 0.5) / max(len(loudness_N), 1) * end_s
    level.fill_between(times_N, FLOOR_DBFS, loudness_N, color="tab:blue", alpha=0.5, lw=0)
    level.set(ylim=(FLOOR_DBFS, 0), ylabel="level\n(dBFS)", xlabel="time (s)", xlim=(0, end_s))
    level.grid(alpha=0.3)
    figure.savefig(path, format="png")


def heat_map(energies_TE: np.ndarray) -> np.ndarray:
    """Energy per level difference and column, dB below the loudest cell [B, N]; NaN where none.

    Rows go from right (-30 dB) to left (+30 dB) in steps of BIN_DB.
    """
    num_bins = round(2 * MAX_LEVEL_DIFFERENCE_DB / BIN_DB) + 1
    num_columns = min(MAX_COLUMNS, len(energies_TE))
    power_T = energies_TE[:, 0] + energies_TE[:, 1]
    row_T = np.rint(level_difference_db(energies_TE) / BIN_DB).astype(int) + num_bins // 2
    column_T = np.arange(len(energies_TE)) * num_columns // max(1, len(energies_TE))
    cells_BN = np.zeros((num_bins, num_columns))
    np.add.at(cells_BN, (row_T, column_T), power_T)
    loudest = cells_BN.max(initial=0.0)
    if loudest == 0.0:
        return np.full_like(cells_BN, np.nan)
    nothing = np.full_like(cells_BN, np.nan)
    return 10 * np.log10(cells_BN / loudest, out=nothing, where=cells_BN > 0)


def _columns(energies_TE: np.ndarray) -> np.ndarray:
    """Mean energies per column [N, E]; the ticks themselves while they fit."""
    num_ticks = len(energies_TE)
    if num_ticks <= MAX_COLUMNS:
        return energies_TE
    starts_N = -(-np.arange(MAX_COLUMNS) * num_ticks // MAX_COLUMNS)
    counts_N = np.diff(np.append(starts_N, num_ticks))
    return np.add.reduceat(energies_TE, starts_N, axis=0) / counts_N[:, None]


def _draw_curves(axes: Axes, measured: Measured, bearings: BearingTrack | None) -> None:
    energies_NE = _columns(measured.energies_TE)
    is_short = len(energies_NE) == len(measured.energies_TE)
    curve_N = pan_curve(energies_NE, window_ticks=7 if is_short else 1)
    times_N = (np.arange(len(curve_N)) + 0.5) / max(len(curve_N), 1) * measured.duration_s
    axes.plot(times_N, curve_N, color="deepskyblue", lw=1.3, label="level difference")
    if bearings is not None and len(measured.times_T):
        # From the file's clock to seconds of sound, which differ by the track's start and gaps.
        position_T = np.arange(len(measured.times_T)) / TIMING.tick_hz
        times_P = np.interp(
            bearings.times_P, measured.times_T, position_T, left=np.nan, right=np.nan
        )
        law_P = law_level_difference_db(bearings.bearing_deg_P)
        step = -(-len(law_P) // MAX_DOTS)
        times_P, law_P = times_P[::step], law_P[::step]
        axes.scatter(
            times_P, np.clip(law_P, -MAX_LEVEL_DIFFERENCE_DB, MAX_LEVEL_DIFFERENCE_DB), s=10,
            color="lime", lw=0, label="largest box, through the engine's panning law"
        )  # fmt: skip
    axes.legend(loc="upper right", fontsize=8)


def _label_sides(axes: Axes) -> None:
    limit = MAX_LEVEL_DIFFERENCE_DB
    ticks = np.arange(-limit, limit + 1, 10)
    sides = {-limit: "RIGHT  ", 0.0: "centre  ", limit: "LEFT  "}
    axes.set_yticks(ticks, [f"{sides.get(db, '')}{abs(db):.0f}" for db in ticks])
    axes.set(ylim=(-limit - 0.5, limit + 0.5), ylabel="louder by (dB)", facecolor="0.12")
    for difference_db in (-SIDED_DB, SIDED_DB):
        axes.axhline(difference_db, color="0.6", lw=0.6, ls=":")


def _headline(title: str, measured: Measured) -> str:
    if measured.stereo is None:
        return f"{title}: {measured.kind}"
    summary = measured.stereo.summary
    return (
        f"{title}: {measured.kind}; side/mid {summary.side_over_mid_db:+.1f} dB, left"
        f" {summary.left:.0%} / centre {summary.centre:.0%} / right {summary.right:.0%}"
    )
