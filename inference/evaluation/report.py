"""Writes report.json and report.md: every row, every figure, with its interval."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatial_v2a.files import write_text
from spatial_v2a.inference.evaluation import metrics
from spatial_v2a.inference.evaluation.figures import LEFT_RIGHT, TABLES, FigureSpec
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.scoring import RowScore

SKILL = FigureSpec("skill", metrics.ratio)
CHECK_SHARES = {"mirror_swapped"}

LEGEND = """\
Windows of 0.2 s in which one source sounds, is audible in the ground truth (-50 dBFS) and is in
the picture throughout. **Pan correlation**: Pearson's r of the level difference left minus right
(dB, clipped to +-30) with the bearing of the source's box centre, pooled over clips.
**Right side**: share of windows with the source more than 5 deg off centre whose louder channel
is on its side; less than 1 dB of difference is wrong. **Azimuth error, slope**: bearing read from
the level difference through the engine's panning law, against the true one; silence counts 90 deg.
**Skill**: 1 - azimuth error / azimuth error of the mono row. **After leaving**: the right side in
the second after the source left the picture. **Level**: RMS against the ground truth.
**Class**: share of clips whose class a classifier names right, trained on ground-truth training
audio only. **Over time**: the same bearing from windows of 7 ticks around every tick; bias is its
mean signed error, movement the share of half seconds in which the source moves by 5 deg or more and
the sound by 1 deg or more the same way, lag the delay at which the two curves correlate best.
**Several sources**: power shared out by masks shaped like the exact stems; order counts pairs
15 deg or more apart, missed is 20 dB below the stem. **When**: onsets by
spectral flux against the ground truth's, one to one. **The literature's figures** stand beside ours
to compare, each with mono's value below it; docs/stagebench.md says what each cannot see. Brackets:
95 % bootstrap interval over clips (Frechet distances: jackknife).
"""


def write_report(
    folder: Path,
    *,
    scores: list[RowScore],
    skills: dict[str, Figure],
    checks: dict[str, Any],
    run: dict[str, Any],
) -> str:
    """Writes both files and returns the Markdown.

    Args:
        folder: existing report folder.
        scores: rows of the table in order.
        skills: skill of each row by name.
        checks: mirror and silence results; Figures or plain values.
        run: what was run: checkpoint, settings, clips.
    """
    rows = {
        score.row.name: {
            "title": score.row.title,
            **{name: as_json(figure) for name, figure in score.figures.items()},
            "skill": as_json(skills[score.row.name]),
            "named": score.named,
        }
        for score in scores
    }
    data = {
        "run": run,
        "rows": rows,
        "checks": {
            name: as_json(value) if isinstance(value, Figure) else value
            for name, value in checks.items()
        },
    }
    write_text(folder / "report.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    text = markdown(scores, skills=skills, checks=checks, run=run)
    write_text(folder / "report.md", text)
    return text


def markdown(
    scores: list[RowScore],
    *,
    skills: dict[str, Figure],
    checks: dict[str, Any],
    run: dict[str, Any],
) -> str:
    """The report as Markdown."""
    lines = ["# StageBench report", ""]
    lines += [f"- {name}: {value}" for name, value in run.items() if name != "clips"]
    lines += [f"- clips: {len(run['clips'])}"]
    for heading, specs in TABLES.items():
        if not any(scores[0].figures[name].count for name in specs):
            continue
        lines += ["", f"## {heading}", ""]
        shown = {**specs, "skill": SKILL} if specs is LEFT_RIGHT else specs
        lines += ["| row | " + " | ".join(spec.title for spec in shown.values()) + " |"]
        lines += ["|---" * (len(shown) + 1) + "|"]
        for score in scores:
            figures = {**score.figures, "skill": skills[score.row.name]}
            cells = [
                cell(figures[name], is_share=spec.is_share, digits=spec.digits)
                for name, spec in shown.items()
            ]
            lines.append(f"| {score.row.title} | " + " | ".join(cells) + " |")
    counts = scores[0].figures
    lines += [
        "",
        f"{counts['pan_correlation'].count} windows for pan and azimuth, "
        f"{counts['sign_accuracy'].count} of them off centre, "
        f"{counts['just_left_sign_accuracy'].count} after leaving the picture.",
        "",
        "## Checks",
        "",
    ]
    for name, value in checks.items():
        text = cell(value, is_share=name in CHECK_SHARES) if isinstance(value, Figure) else value
        lines.append(f"- {name.replace('_', ' ')}: {text}")
    lines += ["", "## How to read it", "", LEGEND]
    return "\n".join(lines)


def cell(figure: Figure, *, is_share: bool, digits: int = 2) -> str:
    """`value [low, high]`, shares in per cent; a dash where nothing was scored."""
    if math.isnan(figure.value):
        return "-"
    scale, digits = (100, 0) if is_share else (1, digits)
    numbers = [f"{scale * v:.{digits}f}" for v in (figure.value, figure.low, figure.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def as_json(figure: Figure) -> dict[str, float | int | None]:
    """A figure with NaN as null, rounded to six digits."""
    values = asdict(figure)
    return {
        name: None if isinstance(v, float) and math.isnan(v) else round(v, 6)
        for name, v in values.items()
    }
