"""The ranking of takes: JSON for programs, Markdown for people, and a picture, one row a take.

Legend: T ticks, N columns of the picture, E energies. Bearings in degrees, POSITIVE TO THE LEFT.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.audio.panning import law_azimuth_deg
from spatial_v2a.audio.stereo import level_dbfs, pan_curve
from spatial_v2a.inference.dub.take_meter import TakeMeter
from spatial_v2a.inference.dub.take_scores import (
    BOX_NOTES,
    SceneNotes,
    TakeScore,
    missing_ticks,
    rank_takes,
)
from spatial_v2a.timing import TIMING

PARTS = ("sync", "direction", "artefacts")
METHOD = {
    "total": "plain mean of the scores that can be told; 0 bad, 1 good",
    "sync": "onsets against motion and moving pan against moving boxes, in time minus out of time;"
    " 0.5 is what an unrelated sound gets",
    "direction": "bearing heard against the boxes: 1 the same, 0.5 in the middle, 0 mirrored",
    "artefacts": "halved for every twentieth of the ticks with a click, clipping or a cut, times"
    " the share without missing sound",
}
NOT_TOLD = "-"


def explain(score: TakeScore) -> list[str]:
    """One line for each part of a score, with the figures behind it."""
    return [_explain_sync(score), _explain_direction(score), _explain_artefacts(score)]


def behind(score: TakeScore, best: TakeScore) -> str:
    """What each part adds to the distance from the best take; empty for the best itself."""
    pairs = {part: (getattr(score, part), getattr(best, part)) for part in PARTS}
    told = {part: pair for part, pair in pairs.items() if None not in pair}
    if score is best or not told:
        return ""
    steps = {part: (own - other) / len(told) for part, (own, other) in told.items()}
    # The largest reason first.
    shown = sorted(steps.items(), key=lambda item: item[1])
    reasons = ", ".join(f"{part} {step:+.3f}" for part, step in shown if abs(step) >= 0.0005)
    return f"{score.total - best.total:+.3f} to the best: {reasons or 'no difference'}"


def ranking_table(names: Sequence[str], scores: Sequence[TakeScore]) -> str:
    """Markdown table of the takes, best first."""
    rows = [
        "| rank | take | total | sync | direction | artefacts | why |",
        "|---|---|---|---|---|---|---|",
    ]
    order = rank_takes(scores)
    for rank, index in enumerate(order, start=1):
        score = scores[index]
        parts = " | ".join(as_text(getattr(score, part)) for part in PARTS)
        why = behind(score, scores[order[0]]) or "best"
        rows.append(f"| {rank} | {names[index]} | {score.total:.3f} | {parts} | {why} |")
    return "\n".join(rows)


def ranking_json(names: Sequence[str], scores: Sequence[TakeScore], *, title: str) -> str:
    """The ranking for programs.

    Args:
        names: one per take, like its file name.
        scores: one per take, in the same order.
        title: name of the video.
    """
    order = rank_takes(scores)
    ranking = [
        {"rank": rank, "take": names[index], "index": index, "total": scores[index].total}
        | asdict(scores[index])
        | {"why": behind(scores[index], scores[order[0]]), "parts": explain(scores[index])}
        for rank, index in enumerate(order, start=1)
    ]
    document = {"video": title, "method": METHOD, "ranking": ranking}
    return json.dumps(document, indent=1) + "\n"


def as_text(value: float | None) -> str:
    """Two digits, or a dash for what cannot be told."""
    return NOT_TOLD if value is None else f"{value:.2f}"


def ranking_markdown(names: Sequence[str], scores: Sequence[TakeScore], *, title: str) -> str:
    """The ranking for people, with the reasons for every score."""
    lines = [f"# Takes of {title}, best first", "", ranking_table(names, scores), ""]
    for index in rank_takes(scores):
        lines += [f"**{names[index]}**", *(f"- {line}" for line in explain(scores[index])), ""]
    lines += [f"- *{name}*: {meaning}" for name, meaning in METHOD.items()]
    return "\n".join(lines) + "\n"


def _explain_sync(score: TakeScore) -> str:
    if score.sync is None:
        return f"sync {NOT_TOLD}: nothing moves in the picture"
    if score.silent_share == 1.0:
        return f"sync {score.sync:.2f}: silent throughout"
    told = []
    if score.movement_contrast is not None:
        told.append(f"pan with boxes {score.movement_contrast:+.2f}")
    if score.onset_contrast is not None:
        told.append(f"onsets with motion {score.onset_contrast:+.2f}")
    if score.shift_ms is not None:
        told.append(f"agrees most at {score.shift_ms:+.0f} ms")
    return f"sync {score.sync:.2f}: {', '.join(told)}"


def _explain_direction(score: TakeScore) -> str:
    if score.direction is None:
        return f"direction {NOT_TOLD}: no boxes"
    if score.pan_error_deg is None:
        return f"direction {score.direction:.2f}: silent whenever a box is there"
    r = "" if score.pan_correlation is None else f", r {score.pan_correlation:.2f}"
    return f"direction {score.direction:.2f}: off by {score.pan_error_deg:.0f} degrees{r}"


def _explain_artefacts(score: TakeScore) -> str:
    if score.artefacts is None:
        return f"artefacts {NOT_TOLD}: no sound"
    return (
        f"artefacts {score.artefacts:.2f}: {score.num_clicks} clicks,"
        f" {score.num_clipped_samples} clipped samples, {score.num_cuts} cuts,"
        f" silent {score.silent_share:.0%}, missing {score.missing_share:.0%}"
    )


MAX_COLUMNS = 600
MAX_DOTS = 1500
NUM_THUMBNAILS = 8
EDGE_DEG = 60.0
FLOOR_DBFS = -70.0
# Width of the pan curve's smoothing, as in `stereo.pan_curve`.
SMOOTHING_TICKS = 7
MINUTES_FROM_S = 300.0
ROW_INCHES, TOP_INCHES, WIDTH_INCHES, DPI = 1.45, 2.6, 13.0, 100
TEXT_COLUMNS, NAME_COLUMNS = 50, 36
HEIGHTS = (3.0, 1.3)
# Where the marks stand in the level's axes, and how they look.
FAULT_MARKS = {"click": (-8.0, "x", "red"), "clipping": (-20.0, "^", "magenta"),
               "cut": (-32.0, "v", "black")}  # fmt: skip


def draw_takes(
    path_png: Path,
    scene: SceneNotes,
    meters: Sequence[TakeMeter],
    scores: Sequence[TakeScore],
    *,
    names: Sequence[str],
    title: str,
) -> None:
    """Writes the contact picture as PNG.

    Args:
        path_png: file to write.
        scene: the picture's side.
        meters, scores, names: one per take, in the same order.
        title: name of the video.
    """
    order = rank_takes(scores)
    height = TOP_INCHES + ROW_INCHES * len(order)
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI)
    FigureCanvasAgg(figure)
    row = ROW_INCHES / sum(HEIGHTS)
    heights = [TOP_INCHES * 0.45, TOP_INCHES * 0.55, *[part * row for part in HEIGHTS] * len(order)]
    # Fixed margins: a layout that measures every text takes seconds for 16 takes.
    grid = figure.add_gridspec(
        len(heights), 2, height_ratios=heights, width_ratios=(2.9, 1), hspace=0.12, wspace=0.03,
        left=0.07, right=0.995, top=1 - 0.35 / height, bottom=0.45 / height,
    )  # fmt: skip
    clock = _Clock(scene.num_ticks)
    strip, motion = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _draw_thumbnails(strip, scene, clock)
    _draw_motion(motion, scene, clock)
    strip.set_title(f"{title}: {len(order)} takes, best first", fontsize=11, loc="left")
    _write_legend(figure.add_subplot(grid[:2, 1]))
    for rank, index in enumerate(order, start=1):
        pan = figure.add_subplot(grid[2 * rank, 0])
        level = figure.add_subplot(grid[2 * rank + 1, 0])
        _draw_pan(pan, scene, meters[index], clock)
        _draw_level(level, scene, meters[index], clock)
        level.tick_params(labelbottom=rank == len(order))
        side = figure.add_subplot(grid[2 * rank : 2 * rank + 2, 1])
        _write_scores(side, f"{rank}.  {names[index]}", scores[index])
        if rank == len(order):
            level.set_xlabel(f"time ({clock.unit})")
    figure.savefig(path_png, format="png")


class _Clock:
    """Maps ticks to columns and to the times under them."""

    def __init__(self, num_ticks: int) -> None:
        self.num_ticks = max(1, num_ticks)
        self.block = -(-self.num_ticks // MAX_COLUMNS)
        is_long = self.num_ticks / TIMING.tick_hz > MINUTES_FROM_S
        self.unit = "min" if is_long else "s"
        self._per_tick = 1.0 / TIMING.tick_hz / (60.0 if is_long else 1.0)
        self.end = self.num_ticks * self._per_tick
        self.columns_N = self.at(np.arange(0, self.num_ticks, self.block) + self.block / 2)

    def at(self, ticks: np.ndarray) -> np.ndarray:
        """Time of ticks, in `unit`."""
        return np.asarray(ticks) * self._per_tick

    def reduce(self, values_T: np.ndarray, how: np.ufunc) -> np.ndarray:
        """Combines the ticks of each column, as `np.add` or `np.maximum` does."""
        starts = np.arange(0, len(values_T), self.block)
        return how.reduceat(values_T, starts, axis=0) if len(starts) else values_T


def _draw_thumbnails(axes: Axes, scene: SceneNotes, clock: _Clock) -> None:
    axes.set(xlim=(0, clock.end), ylim=(0, 1))
    axes.axis("off")
    chosen = scene.thumbnails
    if len(chosen) > NUM_THUMBNAILS:
        picks = np.linspace(0, len(chosen) - 1, NUM_THUMBNAILS).round().astype(int)
        chosen = [chosen[index] for index in picks]
    slot = 1.0 / NUM_THUMBNAILS
    for index, (tick, image_HWC) in enumerate(chosen):
        inset = axes.inset_axes((index * slot, 0.0, slot * 0.96, 1.0))
        inset.imshow(image_HWC)
        inset.set_title(f"{clock.at(tick):.1f} {clock.unit}", fontsize=7, pad=1)
        inset.axis("off")


def _draw_motion(axes: Axes, scene: SceneNotes, clock: _Clock) -> None:
    motion_N = clock.reduce(scene.motion_T, np.maximum)
    axes.fill_between(clock.columns_N[: len(motion_N)], 0, motion_N, color="tab:green", lw=0)
    axes.set(xlim=(0, clock.end), ylabel="motion\n(grey levels)")
    axes.set_ylim(0, max(1.0, float(motion_N.max(initial=0.0)) * 1.1))
    _dress(axes)


def _draw_pan(axes: Axes, scene: SceneNotes, meter: TakeMeter, clock: _Clock) -> None:
    boxes_BF = scene.boxes_BF
    # Every n-th tick that has a box, so that the boxes of one tick stay together.
    _, place_B = np.unique(boxes_BF[:, BOX_NOTES.index("tick")], return_inverse=True)
    shown = boxes_BF[place_B % -(-max(1, len(boxes_BF)) // MAX_DOTS) == 0]
    bearing = np.clip(shown[:, BOX_NOTES.index("bearing_deg")], -EDGE_DEG, EDGE_DEG)
    # Many boxes share the ink of a few.
    size = (6 + 60 * np.sqrt(shown[:, BOX_NOTES.index("area")])) * min(1, 600 / max(1, len(shown)))
    axes.scatter(clock.at(shown[:, 0] + 0.5), bearing, s=size, lw=0, alpha=0.35,
                 color="tab:blue")  # fmt: skip
    energies_TE = meter.energies_TE[: clock.num_ticks]
    counts_N = clock.reduce(np.ones(len(energies_TE)), np.add)
    energies_NE = clock.reduce(energies_TE, np.add) / counts_N[:, None]
    window = 2 * (SMOOTHING_TICKS // clock.block // 2) + 1
    heard_N = law_azimuth_deg(pan_curve(energies_NE, window_ticks=window))
    axes.plot(clock.columns_N[: len(heard_N)], heard_N, color="tab:red", lw=1.4)
    axes.set(xlim=(0, clock.end), ylim=(-EDGE_DEG, EDGE_DEG))
    axes.set_yticks([-45, 0, 45], ["right 45", "0", "left 45"])
    axes.axhline(0, color="0.5", lw=0.6)
    _dress(axes)


def _draw_level(axes: Axes, scene: SceneNotes, meter: TakeMeter, clock: _Clock) -> None:
    energies_NE = clock.reduce(meter.energies_TE[: clock.num_ticks], np.maximum)
    level_N = np.maximum(level_dbfs(energies_NE), FLOOR_DBFS)
    times_N = clock.columns_N[: len(level_N)]
    axes.fill_between(times_N, FLOOR_DBFS, level_N, color="0.75", lw=0, step="mid")
    onsets_s = meter.onsets.times_s
    columns = np.unique((onsets_s * TIMING.tick_hz // clock.block).astype(int))
    columns = columns[columns < len(clock.columns_N)]
    # Many onsets share the ink of a few, so that an hour is not one black bar.
    axes.vlines(clock.columns_N[columns], FLOOR_DBFS, FLOOR_DBFS + 18, color="tab:blue", lw=1.0,
                alpha=float(np.clip(60 / max(1, len(columns)), 0.25, 0.9)))  # fmt: skip
    missing_N = clock.reduce(missing_ticks(scene, meter).astype(int), np.maximum).astype(bool)
    axes.fill_between(clock.columns_N[: len(missing_N)], FLOOR_DBFS, 0, where=missing_N,
                      color="tab:orange", alpha=0.5, lw=0, step="mid")  # fmt: skip
    faults = meter.faults
    counts = {"click": faults.clicks_T, "clipping": faults.clipped_T, "cut": faults.cuts_T}
    for name, (height_db, marker, colour) in FAULT_MARKS.items():
        is_marked_N = clock.reduce(counts[name][: clock.num_ticks], np.add) > 0
        at_N = clock.columns_N[: len(is_marked_N)][is_marked_N]
        axes.scatter(at_N, np.full(len(at_N), height_db), s=18, marker=marker, color=colour, lw=1)
    axes.set(xlim=(0, clock.end), ylim=(FLOOR_DBFS, 0))
    axes.set_yticks([-60, -30, 0], ["-60", "-30", "0 dB"])
    _dress(axes)


def _dress(axes: Axes) -> None:
    axes.tick_params(labelsize=7, labelbottom=False)
    axes.yaxis.label.set_fontsize(8)
    axes.grid(alpha=0.3)


def _write_scores(axes: Axes, name: str, score: TakeScore) -> None:
    axes.axis("off")
    if len(name) > NAME_COLUMNS:
        # Takes of one video differ at the end of their names.
        name = f"{name[:12]}...{name[15 - NAME_COLUMNS :]}"
    axes.text(0, 1.0, name, fontsize=9, weight="bold", va="top")
    axes.text(0, 0.86, f"total {score.total:.3f}", fontsize=9, weight="bold", va="top")
    lines = [textwrap.fill(line, TEXT_COLUMNS, subsequent_indent="    ") for line in explain(score)]
    axes.text(0, 0.70, "\n".join(lines), fontsize=7.5, va="top", linespacing=1.25)


def _write_legend(axes: Axes) -> None:
    axes.axis("off")
    lines = [
        ("tab:blue", "dots: bearing of the boxes"),
        ("tab:red", "line: bearing heard"),
        ("0.45", "grey: level"),
        ("tab:blue", "strokes at the bottom: onsets"),
        ("tab:orange", "orange: silent beside a box for over 1 s"),
        ("red", "x  click"),
        ("magenta", "triangle up: clipped samples"),
        ("black", "triangle down: cut (falls 30 dB in 8 ms)"),
    ]
    for index, (colour, text) in enumerate(lines):
        axes.text(0, 0.98 - 0.11 * index, text, color=colour, fontsize=8, va="top")
