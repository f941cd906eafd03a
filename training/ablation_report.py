"""The table, the picture and the sentences of an ablation grid."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from spatial_v2a.files import write_text, written_whole

# Key in report.json, title, factor for display, whether more is better.
FIGURES = (
    ("pan_correlation", "pan correlation", 1, True),
    ("sign_accuracy", "right side %", 100, True),
    ("azimuth_error_deg", "azimuth error deg", 1, False),
    ("class_accuracy", "class right %", 100, True),
    ("level_against_truth_db", "level against truth dB", 1, True),
    ("level_distance_spearman", "level over distance, Spearman", 1, False),
)
HEADLINE = "sign_accuracy"
COLUMNS = 3  # panels side by side; the number of figures is a multiple of it

Rows = dict[str, list[dict]]  # per variant, the model's row of report.json for each seed


def write_ablation(out: Path, rows: Rows, *, baseline: str, setting: str) -> str:
    """Writes ablation.md and ablation.png into `out`; returns the Markdown.

    Args:
        out: folder of the grid.
        rows: variant name to its rows, one per seed.
        baseline: the variant that the others are compared with.
        setting: one line that says what was trained and scored.
    """
    lines = ["# Ablation", "", setting, ""]
    lines += ["| variant | seed | " + " | ".join(title for _, title, _, _ in FIGURES) + " |"]
    lines += ["|---" * (len(FIGURES) + 2) + "|"]
    for name, seeds in rows.items():
        for number, row in enumerate(seeds):
            cells = [_cell(row[key], factor) for key, _, factor, _ in FIGURES]
            lines.append(f"| {name} | {number} | " + " | ".join(cells) + " |")
    lines += ["", f"Against *{baseline}*, right side (first seed):", ""]
    lines += [
        f"- {name}: {sentence(rows[baseline][0][HEADLINE], seeds[0][HEADLINE])}"
        for name, seeds in rows.items()
        if name != baseline
    ]
    lines += ["", "Brackets: 95 % bootstrap interval over clips.", ""]
    text = "\n".join(lines)
    write_text(out / "ablation.md", text)
    _plot(out / "ablation.png", rows)
    return text


def sentence(baseline: dict, variant: dict) -> str:
    """What the change does to a share, and whether the intervals support it."""
    if baseline["value"] is None or variant["value"] is None:
        return "nothing could be scored"
    points = 100 * (variant["value"] - baseline["value"])
    apart = variant["high"] < baseline["low"] or variant["low"] > baseline["high"]
    verdict = "the intervals do not overlap" if apart else "the intervals overlap: not supported"
    return f"{points:+.0f} points; {verdict}"


def _cell(figure: dict, factor: int) -> str:
    if figure["value"] is None:
        return "-"
    digits = 0 if factor == 100 else 2
    value, low, high = (f"{factor * figure[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _plot(path: Path, rows: Rows) -> None:
    """One panel per figure, one bar per variant (first seed) with its interval."""
    num_lines = len(FIGURES) // COLUMNS
    size = (4.2 * COLUMNS, num_lines * (0.32 * len(rows) + 0.8))
    figure, axes = plt.subplots(num_lines, COLUMNS, figsize=size, squeeze=False)
    names = list(rows)
    for axis, (key, title, factor, _) in zip(axes.flat, FIGURES, strict=True):
        for place, name in enumerate(names):
            cell = rows[name][0][key]
            if cell["value"] is None:
                continue
            value, low, high = (factor * cell[k] for k in ("value", "low", "high"))
            axis.barh(place, value, color="tab:blue", alpha=0.7)
            axis.plot([low, high], [place, place], color="black")
        axis.set_title(title)
        axis.set_yticks(range(len(names)), names if axis in axes[:, 0] else [""] * len(names))
        axis.invert_yaxis()
    figure.tight_layout()
    with written_whole(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=110)
    plt.close(figure)
