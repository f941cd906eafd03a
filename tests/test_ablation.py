"""Ablation grids: the plan, one whole tiny grid, and what the report says of it."""

import json
from pathlib import Path

import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.perception import CUES, Perception
from spatial_v2a.conditioning.store import FeatureStore
from spatial_v2a.errors import UserError
from spatial_v2a.training.ablation import load_plan, sentence, variant_config
from spatial_v2a.training.cli import ablate
from spatial_v2a.training.shards import ShardIndex, fill_store
from tests import evaluation_clips as fake
from tests.tiny_checkpoint import write_tiny_checkpoint

SPATIAL = Path(__file__).parents[1] / "configs" / "ablations" / "spatial.yaml"
TINY = """
config: tiny
set: [training.diffusion.steps=2, training.diffusion.detected_share=1.0]
baseline: all
variants:
  - {name: all}
  - {name: no boxes, without: [boxes], set: [generator.direct_head_path=false]}
  - {name: given, geometry: given}
"""


def test_the_shipped_grid_changes_one_thing_at_a_time() -> None:
    plan = load_plan(SPATIAL)
    baseline = next(v for v in plan.variants if v.name == plan.baseline)
    assert not (baseline.without or baseline.set) and baseline.geometry == "detected"
    for variant in plan.variants:
        changes = bool(variant.without) + len(variant.set) + (variant.geometry != "detected")
        assert changes == (variant is not baseline), variant.name
        streams = variant_config(plan, variant, seed=3).training.diffusion.objective.streams
        for stream in CUES:
            assert (getattr(streams, stream) == 1.0) == (stream in variant.without)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("baseline: all", "baseline: none"), "no variant"),
        (("name: given", "name: all"), "same name"),
        (("geometry: given", "geometry: guessed"), "geometry"),
        (("without: [boxes]", "without: [box]"), "without"),
        (("direct_head_path", "direct_head"), "direct_head"),
        (("seeds", "seeds"), None),
        (("variants:", "variants: ["), "not valid YAML"),
    ],
)
def test_bad_plans_are_refused_before_any_run(tmp_path: Path, change, message) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(TINY.replace(*change))
    if message is None:
        load_plan(path)
        return
    with pytest.raises(UserError, match=message):
        load_plan(path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml"):
        load_plan(tmp_path / "no.yaml")


def test_sentence_says_whether_the_interval_supports_it() -> None:
    high = {"value": 0.9, "low": 0.85, "high": 0.95}
    low = {"value": 0.5, "low": 0.4, "high": 0.6}
    near = {"value": 0.88, "low": 0.8, "high": 0.93}
    assert sentence(high, low) == "-40 points; the intervals do not overlap"
    assert sentence(high, near) == "-2 points; the intervals overlap: not supported"
    assert sentence(high, {"value": None, "low": None, "high": None}).startswith("nothing")


def test_a_whole_tiny_grid_and_its_resume(tmp_path: Path, tiny_config: Config, capsys) -> None:
    samples = [fake.make_sample(f"walk-{i}", fake.path_deg(18, seed=i)) for i in range(2)]
    fake.write_shard(tmp_path / "data" / "0.tar", samples)
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    perception = Perception.from_checkpoint(checkpoint, tiny_config.perception)
    fill_store(FeatureStore(tmp_path / "store"), perception, ShardIndex([tmp_path / "data"]))
    grid = TINY.replace("  - {name: given, geometry: given}\n", "")
    (tmp_path / "plan.yaml").write_text(grid)

    def run() -> str:
        ablate(
            tmp_path / "plan.yaml",
            data=[tmp_path / "data"],
            test=[tmp_path / "data"],
            init=checkpoint,
            store=tmp_path / "store",
            out=tmp_path / "out",
        )
        return (tmp_path / "out" / "ablation.md").read_text()

    text = run()
    assert [line.split(" | ")[0] for line in text.splitlines() if " | 0 |" in line] == [
        "| all",
        "| no boxes",
    ]
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 5000
    report = json.loads((tmp_path / "out" / "no-boxes-seed0/scores/report.json").read_text())
    assert "boxes" in report["run"]["settings"]
    folder = tmp_path / "out" / "all-seed0"
    made = [folder / "checkpoint" / "config.yaml", folder / "scores" / "report.json"]
    written = [path.stat().st_mtime_ns for path in made]
    assert run() == text
    assert [p.stat().st_mtime_ns for p in made] == written, "a finished variant was done again"
    (tmp_path / "plan.yaml").write_text(grid.replace("steps=2", "steps=3"))
    with pytest.raises(UserError, match="another config"):
        run()
