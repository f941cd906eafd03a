"""Does the metric answer to what it should? Known changes to the pan, and what is reported.

The mono of the ground truth is panned along the true path by the engine's law, with one thing
wrong at a time by a known amount; the report's own scoring then has to name that amount.
Legend: T ticks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.files import write_text, written_whole
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.report import cell, table_lines
from spatial_v2a.inference.evaluation.rows import ClipRecord, Row, hold_last
from spatial_v2a.inference.evaluation.scoring import score_row, skill
from spatial_v2a.inference.evaluation.trajectory import centred_mean
from spatial_v2a.timing import TIMING

Change = Callable[[np.ndarray, ClipRecord, float], np.ndarray]
SHOWN = {
    "pan_correlation": "pan correlation",
    "sign_accuracy": "right side %",
    "azimuth_error_deg": "azimuth error deg",
    "azimuth_slope": "slope",
    "skill": "skill",
    "azimuth_bias_deg": "bias deg",
    "trajectory_rmse_deg": "RMSE deg",
    "movement_direction": "movement right way %",
    "lag_ms": "lag ms",
}
SHARES = {"sign_accuracy", "movement_direction"}


@dataclass(frozen=True)
class Sweep:
    """One kind of error in growing amounts.

    Attributes:
        title, unit: of the amount.
        amounts: what is put in.
        change: makes the wrong path [T] from the true one, the clip and an amount.
        figure: name of the figure that should name the amount, drawn in the picture.
        wanted: that figure as a function of the amount, or None where only the order matters.
    """

    title: str
    unit: str
    amounts: tuple[float, ...]
    change: Change
    figure: str
    wanted: Callable[[float], float] | None


def late(path_T: np.ndarray, record: ClipRecord, lag_ms: float) -> np.ndarray:
    """The path, `lag_ms` later (its first bearing is held until then)."""
    at_T = np.arange(len(path_T))
    return np.interp(at_T - lag_ms * TIMING.tick_hz / 1000.0, at_T, path_T)


def wandering(path_T: np.ndarray, record: ClipRecord, size_deg: float) -> np.ndarray:
    """The path plus slow noise of this standard deviation in degrees."""
    noise_T = centred_mean(np.random.default_rng(record.number).normal(size=len(path_T)))
    return path_T + size_deg * noise_T / max(noise_T.std(), 1e-9)


SWEEPS = {
    "moved": Sweep(
        "moved to the left",
        "deg",
        (-20, -10, -5, 0, 5, 10, 20),
        lambda path_T, record, amount: path_T + amount,
        "azimuth_bias_deg",
        lambda amount: amount,
    ),
    "late": Sweep(
        "late", "ms", (-100, 0, 33, 100, 200, 333), late, "lag_ms", lambda amount: amount
    ),
    "scaled": Sweep(
        "bearing times (1 true, 0 mono, -1 mirrored)",
        "",
        (-1, -0.5, 0, 0.25, 0.5, 0.75, 1),
        lambda path_T, record, amount: path_T * amount,
        "azimuth_slope",
        lambda amount: amount,
    ),
    "wandering": Sweep(
        "wandering by noise of", "deg", (0, 2.5, 5, 10, 20, 40), wandering, "skill", None
    ),
}


def sweep_row(sweep: Sweep, amount: float, *, ground_truth: Row) -> Row:
    """The row with this amount of one error."""

    def render(record: ClipRecord) -> np.ndarray:
        truth = record.truth
        best_T = np.where(np.isnan(truth.screen_azimuth_T), truth.azimuth_T, truth.screen_azimuth_T)
        path_T = sweep.change(hold_last(best_T), record, amount)
        mono_L = ground_truth.render(record).mean(axis=1)
        return pan_mono(mono_L, path_T, samples_per_tick=TIMING.samples_per_tick)

    return Row(f"{amount:g}", f"{sweep.title} {amount:g} {sweep.unit}".strip(), render)


def validate(
    records: list[ClipRecord], *, ground_truth: Row, folder: Path, progress: Callable[[str], None]
) -> dict[str, dict[float, dict[str, Figure]]]:
    """Scores every sweep; writes validation.md and validation.png.

    Returns:
        Figures by sweep, amount and name.
    """
    mono = score_row(
        sweep_row(SWEEPS["scaled"], 0, ground_truth=ground_truth),
        records,
        ground_truth=ground_truth,
    )
    results: dict[str, dict[float, dict[str, Figure]]] = {}
    cells: list[list[str]] = []

    def add(row: Row) -> dict[str, Figure]:
        score = score_row(row, records, ground_truth=ground_truth)
        figures = {**score.figures, "skill": skill(score, mono)}
        cells.append([row.title, *(cell(figures[n], is_share=n in SHARES) for n in SHOWN)])
        return figures

    add(Row("truth", "ground truth", ground_truth.render))
    add(
        Row("reversed", "ground truth, channels swapped", lambda r: ground_truth.render(r)[:, ::-1])
    )
    add(Row("silence", "silence", lambda record: 0 * ground_truth.render(record)))
    for name, sweep in SWEEPS.items():
        progress(f"validating: {name}")
        results[name] = {
            amount: add(sweep_row(sweep, amount, ground_truth=ground_truth))
            for amount in sweep.amounts
        }
    lines = ["# Validation of the metric", "", *table_lines(["sound", *SHOWN.values()], cells)]
    write_text(folder / "validation.md", "\n".join(lines) + "\n")
    draw(folder / "validation.png", results)
    return results


def draw(path: Path, results: dict[str, dict[float, dict[str, Figure]]]) -> None:
    """One panel a sweep: what was put in against what is reported, with its interval."""
    picture = Picture(figsize=(13, 3.2), layout="constrained")
    FigureCanvasAgg(picture)
    for axes, (name, by_amount) in zip(
        picture.subplots(1, len(results)), results.items(), strict=True
    ):
        sweep = SWEEPS[name]
        amounts = np.array(list(by_amount))
        figures = [by[sweep.figure] for by in by_amount.values()]
        values = np.array([figure.value for figure in figures])
        below, above = (
            np.array([abs(getattr(f, side) - f.value) for f in figures]) for side in ("low", "high")
        )
        if sweep.wanted is not None:
            axes.plot(amounts, [sweep.wanted(a) for a in amounts], color="0.7", linewidth=4)
        axes.errorbar(amounts, values, yerr=[below, above], fmt="o-", color="tab:red", capsize=3)
        axes.set(xlabel=f"put in: {sweep.title} {sweep.unit}", ylabel=SHOWN[sweep.figure])
        axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    with written_whole(path, overwrite=True) as draft:
        picture.savefig(draft, dpi=100, format="png")
