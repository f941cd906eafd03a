"""Trains and scores a grid of variants: same data, steps and seeds, one thing changed at a time.

Every variant is an ordinary diffusion run in its own folder, scored by `spatial-v2a evaluate` in a
process of its own (training never imports inference). A killed grid goes on where it was.
"""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
from pydantic import Field, ValidationError, model_validator

from spatial_v2a.bounded import MAX_YAML_BYTES, parse_yaml, read_json, read_text
from spatial_v2a.config import Config, explain, load_config
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text, written_whole
from spatial_v2a.strict import StrictConfig
from spatial_v2a.training.generator import train_generator
from spatial_v2a.training.loop import claim_run

log = logging.getLogger(__name__)

Stream = Literal["dino", "depth", "boxes"]
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


class Variant(StrictConfig):
    """One cell of the grid.

    Attributes:
        name: its line in the table.
        set: overrides on top of the plan's.
        without: streams that neither training nor scoring sees.
        geometry: boxes and depth as detected, or as the engine gives them.
    """

    name: str = Field(min_length=1, max_length=100)
    set: list[str] = []
    without: list[Stream] = []
    geometry: Literal["detected", "given"] = "detected"

    @property
    def folder(self) -> str:
        """Folder name of the variant's runs."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())


class AblationPlan(StrictConfig):
    """A grid.

    Attributes:
        config: preset or file that every variant starts from.
        set: overrides that every variant shares.
        seeds: every variant is trained once per seed.
        baseline: name of the variant that the others are compared with.
        variants: the cells.
    """

    config: str
    set: list[str] = []
    seeds: list[int] = Field(default=[0], min_length=1)
    baseline: str
    variants: list[Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> "AblationPlan":
        folders = [variant.folder for variant in self.variants]
        if len(set(folders)) < len(folders):
            raise ValueError("two variants have the same name; rename one")
        if self.baseline not in [variant.name for variant in self.variants]:
            raise ValueError(f"baseline {self.baseline!r} is no variant; name one of them")
        return self


@dataclass(frozen=True)
class Inputs:
    """What every variant shares.

    Attributes:
        data: folders of training shards.
        test: folders of shards to score on.
        init: checkpoint with a trained autoencoder and, for detected geometry, perception.
        store: feature store with detected features of the training clips.
        num_clips: clips to score, all when None.
        jobs: processes that make sounds at once.
    """

    data: list[Path]
    test: list[Path]
    init: Path
    store: Path
    num_clips: int | None
    jobs: int


def load_plan(path: Path) -> AblationPlan:
    """Reads a grid from YAML.

    Raises:
        UserError: missing file, not YAML, unknown key, two variants of one name, bad baseline.
    """
    data = parse_yaml(read_text(path, max_bytes=MAX_YAML_BYTES), where=str(path))
    try:
        plan = AblationPlan.model_validate_json(json.dumps(data))
    except ValidationError as error:
        reason = explain(error, AblationPlan)
        raise UserError(f"{path}: {reason}; see configs/ablations") from error
    for variant in plan.variants:
        variant_config(plan, variant, seed=plan.seeds[0])  # refuses bad overrides before any run
    return plan


def variant_config(plan: AblationPlan, variant: Variant, *, seed: int) -> Config:
    """The full configuration of one run."""
    section = "training.diffusion"
    overrides = [*plan.set, *variant.set, f"{section}.seed={seed}"]
    overrides += [f"{section}.objective.streams.{stream}=1.0" for stream in variant.without]
    if variant.geometry == "given":
        overrides.append(f"{section}.detected_share=0.0")
    return load_config(plan.config, overrides)


def run_variant(
    plan: AblationPlan, variant: Variant, inputs: Inputs, out: Path, *, seed: int
) -> dict:
    """Trains and scores one variant unless that is done; returns its row of the report.

    Raises:
        UserError: the folder holds a run of another config, or scoring failed.
    """
    run_dir = out / f"{variant.folder}-seed{seed}"
    config = variant_config(plan, variant, seed=seed)
    claim_run(run_dir, config)
    is_given = variant.geometry == "given"
    if not (run_dir / "trained").exists():
        train_generator(
            config,
            "diffusion",
            inputs.data,
            [],
            run_dir,
            init=inputs.init,
            store_dir=None if is_given else inputs.store,
            latents=out / "latents.npz",  # the same sounds for every variant
        )
        (run_dir / "trained").touch()
    return _scored_row(variant, inputs, run_dir)


def _scored_row(variant: Variant, inputs: Inputs, run_dir: Path) -> dict:
    """Scores a trained variant with `spatial-v2a evaluate`, once per set of clips."""
    kept, asked = run_dir / "row.json", [[str(p) for p in inputs.test], inputs.num_clips]
    if kept.exists():
        saved = read_json(kept)
        if saved["asked"] == asked:
            return saved["row"]
    scores, is_given = run_dir / "scores", variant.geometry == "given"
    command = [_evaluate_program(), "evaluate", "--out", str(scores), "--no-mirror", "--brief"]
    command += ["--checkpoint", str(run_dir / "checkpoint"), "--jobs", str(inputs.jobs)]
    command += [part for folder in inputs.test for part in ("--data", str(folder))]
    command += [part for stream in variant.without for part in ("--without", stream)]
    command += [] if is_given else ["--no-given"]
    command += [] if inputs.num_clips is None else ["--clips", str(inputs.num_clips)]
    log.info("scoring %s", variant.name)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"scoring {variant.name} failed; see above, then run the same command")
    report = read_json(scores / "report.json", max_bytes=2**28)
    row = report["rows"]["model_given" if is_given else "model"]
    write_text(kept, json.dumps({"asked": asked, "row": row}))
    return row


def _evaluate_program() -> str:
    """The console script of this environment: training does not import inference."""
    folder = Path(sys.executable).parent
    found = shutil.which("spatial-v2a", path=str(folder)) or shutil.which("spatial-v2a")
    if found is None:
        raise UserError(f"no spatial-v2a program in {folder}; install the package, then run again")
    return found


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
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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
