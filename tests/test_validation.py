"""The validation of the metric: every sweep is reported by the amount that was put in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a.inference.cli.evaluate import evaluate
from spatial_v2a.inference.evaluation import validation
from spatial_v2a.inference.evaluation.clips import choose_clips, clip_record, read_clips
from spatial_v2a.inference.evaluation.rows import Row
from tests import evaluation_clips as fake

NUM_TICKS = 240


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Four recordings of a source that stays in the picture and swings."""
    folder = tmp_path_factory.mktemp("shards")
    paths = [0.6 * fake.path_deg(NUM_TICKS, seed=number) for number in range(4)]
    samples = [fake.make_sample(f"walk-{n}", path_T) for n, path_T in enumerate(paths)]
    fake.write_shard(folder / "000000.tar", samples)
    return folder


@pytest.fixture(scope="module")
def results(shards: Path, tmp_path_factory):
    """Every sweep over the four recordings."""
    chosen = choose_clips([shards], num_clips=None, scenario=None)
    clips = list(read_clips(chosen, chosen.scored))
    sounds = {clip.key: clip.audio_LC() for clip in clips}
    records = [clip_record(clip, number) for number, clip in enumerate(clips)]
    row = Row("ground_truth", "ground truth", lambda record: sounds[record.key])
    folder = tmp_path_factory.mktemp("validation")
    return validation.validate(records, ground_truth=row, folder=folder, progress=lambda line: None)


@pytest.mark.parametrize("amount", [-10, -5, 0, 5, 10])
def test_a_moved_source_is_reported_as_moved(results, amount: float) -> None:
    assert results["moved"][amount]["azimuth_bias_deg"].value == pytest.approx(amount, abs=2.0)


@pytest.mark.parametrize("amount", validation.SWEEPS["late"].amounts)
def test_a_lag_is_reported_as_it_is(results, amount: float) -> None:
    assert results["late"][amount]["lag_ms"].value == pytest.approx(amount, abs=17.0)


@pytest.mark.parametrize("amount", validation.SWEEPS["scaled"].amounts)
def test_slope_and_skill_answer_to_the_size_of_the_pan(results, amount: float) -> None:
    figures = results["scaled"][amount]
    assert figures["azimuth_slope"].value == pytest.approx(amount, abs=0.05)
    assert figures["skill"].value == pytest.approx(amount, abs=0.1)


def test_mono_has_no_skill_and_reversed_less(results) -> None:
    by_amount = results["scaled"]
    assert abs(by_amount[0]["skill"].value) < 0.02
    assert by_amount[-1]["skill"].value < by_amount[0]["skill"].value - 0.5
    assert by_amount[0]["sign_accuracy"].value == 0.0


@pytest.mark.parametrize(
    ("figure", "sign"), [("skill", -1), ("pan_correlation", -1), ("trajectory_rmse_deg", 1)]
)
def test_figures_worsen_steadily_with_noise(results, figure: str, sign: int) -> None:
    values = [figures[figure].value for figures in results["wandering"].values()]
    assert (sign * np.diff(values) > 0).all()


def test_the_command_writes_table_and_picture(shards: Path, tmp_path: Path, monkeypatch) -> None:
    few = {name: replace(validation.SWEEPS[name], amounts=(100,)) for name in ("moved", "late")}
    monkeypatch.setattr(validation, "SWEEPS", few | {"scaled": validation.SWEEPS["scaled"]})
    evaluate(tmp_path, data=[shards], validate=True, clips=1)
    assert "| late 100 ms |" in (tmp_path / "validation.md").read_text()
    assert (tmp_path / "validation.png").stat().st_size > 10_000
