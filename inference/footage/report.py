"""Writes the report of footage: report.json and report.md, every row and every item."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatial_v2a.files import write_text
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.report import as_json, cell
from spatial_v2a.inference.footage.folder import NotScored
from spatial_v2a.inference.footage.rows import FootageRecord
from spatial_v2a.inference.footage.scoring import (
    FOOTAGE_TABLES,
    FootageScore,
    side_over_mid_db,
)
from spatial_v2a.inference.footage.stereo import DataStereo

# More lines than this are left to report.json.
MAX_LINES = 40
# Resampling fewer items than this gives intervals that are far too narrow.
MIN_ITEMS = 6

LEGEND = """\
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


@dataclass(frozen=True)
class FootageReport:
    """All that a report says.

    Attributes:
        run: what was run: folder, checkpoint, settings.
        stereo: how stereo the originals are.
        scores: rows of the tables, in order.
        records: the scored items.
        not_scored: files and items without a place in the tables.
        splits: size of each split list of Walking The Maps.
    """

    run: dict[str, Any]
    stereo: DataStereo
    scores: list[FootageScore]
    records: list[FootageRecord]
    not_scored: list[NotScored]
    splits: dict[str, int]

    def write(self, folder: Path) -> str:
        """Writes both files and returns the Markdown."""
        data = {
            "run": self.run,
            "originals": self.stereo.as_json(),
            "splits": self.splits,
            "rows": {
                score.row.name: {
                    "title": score.row.title.strip("*"),
                    **{name: as_json(figure) for name, figure in score.figures.items()},
                }
                for score in self.scores
            },
            "items": {record.item.key: self._item_json(record) for record in self.records},
            "not_scored": [{"name": n.name, "reason": n.reason} for n in self.not_scored],
        }
        write_text(folder / "report.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
        text = self.markdown()
        write_text(folder / "report.md", text)
        return text

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = ["# Footage report", ""]
        lines += [f"- {name}: {value}" for name, value in self.run.items()]
        lines += [f"- items: {len(self.records)} scored, {len(self.not_scored)} not scored"]
        lines += [f"- split {name}: {count} samples" for name, count in self.splits.items()]
        lines += ["", "## How stereo the originals are", "", self.stereo.text()]
        for heading, specs in FOOTAGE_TABLES.items():
            titles = ["row", *(spec.title for spec in specs.values())]
            lines += ["", f"## {heading}", "", *_header(titles)]
            for score in self.scores:
                cells = [
                    cell(score.figures[name], is_share=spec.is_share, digits=spec.digits)
                    for name, spec in specs.items()
                ]
                lines.append(f"| {score.row.title} | {' | '.join(cells)} |")
        lines += ["", *self._remarks(), "", "## Items", "", *self._item_lines()]
        if self.not_scored:
            lines += ["", "## Not scored", ""]
            lines += [f"- {n.name}: {n.reason}" for n in self.not_scored[:MAX_LINES]]
            lines += _rest(len(self.not_scored))
        return "\n".join([*lines, "", "## How to read it", "", LEGEND])

    def _remarks(self) -> list[str]:
        """What limits the figures of this folder."""
        originals = [record.original for record in self.records]
        num_sounds = sum(original.is_sound for original in originals)
        num_sided = sum(original.has_sides for original in originals)
        text = (
            f"- E-L1 is scored on the {num_sounds} of {len(originals)} items with an original,"
            f" BiasSkill on the {num_sided} whose original is stereo"
        )
        model = self._model()
        if math.isnan(model.figures["bias_skill"].value):
            text += " (not enough: it takes two, with windows on both sides)"
        lines = [text]
        if len(self.records) < MIN_ITEMS:
            lines.append(f"- brackets over {len(self.records)} items say little; over one, nothing")
        without = sum(_box_share(record) == 0 for record in self.records)
        if without:
            lines.append(f"- in {without} items the detector sees no box at all")
        slow = sum(record.item.picture_hz < 10 for record in self.records)
        if slow:
            lines.append(
                f"- {slow} items have fewer than 10 pictures a second: AV-Align is lenient"
            )
        return lines

    def _model(self) -> FootageScore:
        return next(score for score in self.scores if score.row.name == rows.MODEL)

    def _item_json(self, record: FootageRecord) -> dict[str, Any]:
        sums = {name: sums_NS[record.number] for name, sums_NS in self._model().sums.items()}
        numbers = {
            "side_over_mid_db": float(side_over_mid_db(sums["side_over_mid_db"][None])[0]),
            **{name: _ratio(sums[name]) for name in ("left", "centre", "right")},
            "mirror_swapped": _ratio(sums["mirror_swapped"]),
            "box_share": _box_share(record),
        }
        return {
            "duration_s": round(float(record.item.duration_s), 6),
            "picture_hz": round(float(record.item.picture_hz), 3),
            "original": record.original.kind,
            "num_motion_peaks": len(record.motion_peaks_s),
            **{name: None if math.isnan(v) else round(v, 4) for name, v in numbers.items()},
        }

    def _item_lines(self) -> list[str]:
        titles = ["item", "s", "pictures/s", "box %", "original", "its side/mid dB",
                  "model side/mid dB", "L / C / R %", "mirror swaps %"]  # fmt: skip
        lines = _header(titles)
        for record in self.records[:MAX_LINES]:
            item = self._item_json(record)
            shares = [item[name] for name in ("left", "centre", "right")]
            cells = [
                record.item.key,
                f"{item['duration_s']:.1f}",
                f"{item['picture_hz']:.4g}",
                _percent(item["box_share"]),
                item["original"],
                _number(record.original.side_over_mid_db),
                _number(item["side_over_mid_db"]),
                " / ".join(_percent(share) for share in shares),
                _percent(item["mirror_swapped"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return lines + _rest(len(self.records))


def _header(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _rest(count: int) -> list[str]:
    return ["", f"({count - MAX_LINES} more in report.json)"] if count > MAX_LINES else []


def _box_share(record: FootageRecord) -> float:
    """Share of the ticks in which the detector sees something."""
    return float((~np.isnan(record.largest_box_deg_T())).mean())


def _ratio(sums_S: np.ndarray) -> float:
    return float(sums_S[1] / sums_S[0]) if sums_S[0] else float("nan")


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"
