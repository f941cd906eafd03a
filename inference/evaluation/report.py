"""Writes report.json and report.md, of clips and of footage: every row, every figure."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spatial_v2a.files import write_text
from spatial_v2a.inference.evaluation import metrics, rows
from spatial_v2a.inference.evaluation.figures import (
    FOOTAGE_TABLES,
    LEFT_RIGHT,
    TABLES,
    FigureSpec,
    side_over_mid_db,
)
from spatial_v2a.inference.evaluation.footage import NotScored
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.originals import DataStereo, FootageRecord
from spatial_v2a.inference.evaluation.scoring import RowScore

SKILL = FigureSpec("skill", metrics.ratio)
CHECK_SHARES = {"mirror_swapped"}
# More lines than this are left to report.json.
MAX_LINES = 40
# Resampling fewer items than this gives intervals that are far too narrow.
MIN_ITEMS = 6

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

FOOTAGE_LEGEND = """\
No positions are known here, so nothing says that a sound is in its place; docs/footage.md says what
each figure can and cannot tell. **Mirror correlation**: level difference (windows of 0.2 s) of the
sound against the turned one of the sound of the mirrored picture, same seed; 1 is a sound whose
side follows the picture alone. **Mirror swaps**: of the windows 1 dB or more to a side, those that
change it. **Side/mid**: over the whole sound of all items; -60 dB stands for duplicated mono.
**Left, centre, right**: audible windows (-60 dBFS) with 3 dB or more of difference to a side.
**BiasSkill** needs two items with a stereo original, and windows on both sides. **E-L1** needs an
original, mono or not; it is blind to panning. **AV-Align** pairs onsets with peaks of the picture's
motion less than one stored picture apart. **Spatial AV-Align** asks whether a *detected* box is
near the sound: without boxes it is 0, and with large ones centred mono scores high, so read it
beside the mono row. **HelixBench Spatial** (arXiv 2609.38123) asks whether the sound is on the side
of the largest *detected* box: mono 0, always right 100; published on other clips, HelixWorld 41.8,
ThinkSound 14.8, EchoWM 12.6, LTX-2.3 1.0, AudioX -5.7, PrismAudio -9.5. **Audible in view**: ticks
with a detected object that sound above -60 dBFS. A dash: nothing to score. Brackets: 95 % bootstrap
interval over items.
"""


def write_report(
    folder: Path,
    *,
    scores: list[RowScore],
    skills: dict[str, Figure],
    checks: dict[str, Any],
    run: dict[str, Any],
) -> str:
    """Writes both files for clips with known positions and returns the Markdown.

    Args:
        folder: existing report folder.
        scores: rows of the table in order.
        skills: skill of each row by name.
        checks: mirror and silence results; Figures or plain values.
        run: what was run: checkpoint, settings, clips.
    """
    for score in scores:
        score.figures["skill"] = skills[score.row.name]
    data = {
        "run": run,
        "rows": {s.row.name: {**_row_json(s), "named": s.named} for s in scores},
        "checks": {
            name: as_json(value) if isinstance(value, Figure) else value
            for name, value in checks.items()
        },
    }
    lines = ["# StageBench report", ""]
    lines += [f"- {name}: {value}" for name, value in run.items() if name != "clips"]
    lines += [f"- clips: {len(run['clips'])}"]
    for heading, specs in TABLES.items():
        shown = {**specs, "skill": SKILL} if specs is LEFT_RIGHT else specs
        if any(scores[0].figures[name].count for name in specs):
            lines += figure_table(heading, shown, scores)
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
    return _write(folder, data, [*lines, "", "## How to read it", "", LEGEND])


def write_footage_report(
    folder: Path,
    *,
    run: dict[str, Any],
    stereo: DataStereo,
    scores: list[RowScore],
    records: list[FootageRecord],
    not_scored: list[NotScored],
    splits: dict[str, int],
) -> str:
    """Writes both files for footage and returns the Markdown.

    Args:
        folder: existing report folder.
        run: what was run: folder, checkpoint, settings.
        stereo: how stereo the originals are.
        scores: rows of the tables, in order.
        records: the scored items.
        not_scored: files and items without a place in the tables.
        splits: size of each split list of Walking The Maps.
    """
    model = next(score for score in scores if score.row.name == rows.MODEL)
    items = {record.key: _item_json(record, model) for record in records}
    data = {
        "run": run,
        "originals": stereo.as_json(),
        "splits": splits,
        "rows": {s.row.name: {**_row_json(s), "title": s.row.title.strip("*")} for s in scores},
        "items": items,
        "not_scored": [asdict(entry) for entry in not_scored],
    }
    lines = ["# Footage report", ""]
    lines += [f"- {name}: {value}" for name, value in run.items()]
    lines += [f"- items: {len(records)} scored, {len(not_scored)} not scored"]
    lines += [f"- split {name}: {count} samples" for name, count in splits.items()]
    lines += ["", "## How stereo the originals are", "", stereo.text()]
    for heading, specs in FOOTAGE_TABLES.items():
        lines += figure_table(heading, specs, scores)
    lines += ["", *_remarks(records, model), "", "## Items", ""]
    lines += table_lines(
        ["item", "s", "pictures/s", "box %", "original", "its side/mid dB", "model side/mid dB"]
        + ["L / C / R %", "mirror swaps %"],
        [_item_cells(record, items[record.key]) for record in records[:MAX_LINES]],
    )
    lines += _rest(len(records))
    if not_scored:
        lines += ["", "## Not scored", ""]
        lines += [f"- {entry.name}: {entry.reason}" for entry in not_scored[:MAX_LINES]]
        lines += _rest(len(not_scored))
    return _write(folder, data, [*lines, "", "## How to read it", "", FOOTAGE_LEGEND])


def _write(folder: Path, data: dict[str, Any], lines: list[str]) -> str:
    write_text(folder / "report.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    text = "\n".join(lines)
    write_text(folder / "report.md", text)
    return text


def figure_table(
    heading: str, specs: Mapping[str, FigureSpec], scores: Sequence[RowScore]
) -> list[str]:
    """A section of Markdown: a line per row, a column per figure."""
    cells = [
        [
            score.row.title,
            *(
                cell(score.figures[name], is_share=spec.is_share, digits=spec.digits)
                for name, spec in specs.items()
            ),
        ]
        for score in scores
    ]
    titles = ["row", *(spec.title for spec in specs.values())]
    return ["", f"## {heading}", "", *table_lines(titles, cells)]


def table_lines(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    head = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return [*head, *(f"| {' | '.join(line)} |" for line in cells)]


def _row_json(score: RowScore) -> dict[str, Any]:
    figures = {name: as_json(figure) for name, figure in score.figures.items()}
    return {"title": score.row.title, **figures}


def _remarks(records: Sequence[FootageRecord], model: RowScore) -> list[str]:
    """What limits the figures of this folder."""
    num_sounds = sum(record.original.is_sound for record in records)
    num_sided = sum(record.original.has_sides for record in records)
    text = (
        f"- E-L1 is scored on the {num_sounds} of {len(records)} items with an original,"
        f" BiasSkill on the {num_sided} whose original is stereo"
    )
    if math.isnan(model.figures["bias_skill"].value):
        text += " (not enough: it takes two, with windows on both sides)"
    lines = [text]
    if len(records) < MIN_ITEMS:
        lines.append(f"- brackets over {len(records)} items say little; over one, nothing")
    without = sum(_box_share(record) == 0 for record in records)
    if without:
        lines.append(f"- in {without} items the detector sees no box at all")
    slow = sum(record.picture.picture_hz < 10 for record in records)
    if slow:
        lines.append(f"- {slow} items have fewer than 10 pictures a second: AV-Align is lenient")
    return lines


def _item_json(record: FootageRecord, model: RowScore) -> dict[str, Any]:
    sums = {name: sums_NS[record.number] for name, sums_NS in model.sums.items()}
    ratios = ("left", "centre", "right", "mirror_swapped")
    numbers = {
        "side_over_mid_db": float(side_over_mid_db(sums["side_over_mid_db"][None])[0]),
        **{name: float(metrics.ratio(sums[name][None])[0]) for name in ratios},
        "box_share": _box_share(record),
    }
    return {
        "duration_s": round(record.duration_s, 6),
        "picture_hz": round(record.picture.picture_hz, 3),
        "original": record.original.kind,
        "num_motion_peaks": len(record.picture.motion_peaks_s),
        **{name: None if math.isnan(v) else round(v, 4) for name, v in numbers.items()},
    }


def _item_cells(record: FootageRecord, item: dict[str, Any]) -> list[str]:
    def shown(value: float | None, form: Callable[[float], str]) -> str:
        return "-" if value is None or math.isnan(value) else form(value)

    def percent(name: str) -> str:
        return shown(item[name], lambda share: f"{100 * share:.0f}")

    return [
        record.key,
        f"{item['duration_s']:.1f}",
        f"{item['picture_hz']:.4g}",
        percent("box_share"),
        item["original"],
        shown(record.original.side_over_mid_db, "{:.1f}".format),
        shown(item["side_over_mid_db"], "{:.1f}".format),
        " / ".join(percent(name) for name in ("left", "centre", "right")),
        percent("mirror_swapped"),
    ]


def _rest(count: int) -> list[str]:
    return ["", f"({count - MAX_LINES} more in report.json)"] if count > MAX_LINES else []


def _box_share(record: FootageRecord) -> float:
    """Share of the ticks in which the detector sees something."""
    return float((~np.isnan(record.picture.box_azimuth_T)).mean())


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
