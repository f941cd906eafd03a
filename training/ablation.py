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

from pydantic import Field, ValidationError, model_validator

from spatial_v2a.bounded import MAX_YAML_BYTES, parse_yaml, read_json, read_text
from spatial_v2a.config import Config, config_to_yaml, explain, load_config
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text
from spatial_v2a.strict import StrictConfig
from spatial_v2a.training.generator import train_generator

log = logging.getLogger(__name__)

Stream = Literal["dino", "depth", "boxes"]


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
        UserError: the folder holds a run of another plan, or scoring failed.
    """
    run_dir = out / f"{variant.folder}-seed{seed}"
    config = variant_config(plan, variant, seed=seed)
    _claim(run_dir, config_to_yaml(config))
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
    beside = Path(sys.executable).parent
    found = shutil.which("spatial-v2a", path=str(beside)) or shutil.which("spatial-v2a")
    if found is None:
        raise UserError(f"no spatial-v2a program in {beside}; install the package, then run again")
    return found


def _claim(run_dir: Path, text: str) -> None:
    """Makes the run folder, or refuses one that was made by another plan."""
    saved = run_dir / "config.yaml"
    if saved.exists() and saved.read_text(encoding="utf-8") != text:
        raise UserError(f"{run_dir} holds a run of another plan; choose another --out")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(saved, text)
    except OSError as error:
        raise UserError(f"cannot write {saved}: {error.strerror}; choose another --out") from error
