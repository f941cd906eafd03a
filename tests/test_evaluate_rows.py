"""The benchmark answers to pan and to nothing else: ground truth on top, null rows at chance."""

import numpy as np
import pytest

from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.clips import clip_record
from spatial_v2a.inference.evaluation.rows import Row, derangement, hold_last, null_rows
from spatial_v2a.inference.evaluation.scoring import (
    ClipScorer,
    mirror_figures,
    score_row,
    score_table,
    skill,
)
from spatial_v2a.inference.evaluation.store import SoundStore, read_rival_wav
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import clip_truth, window_truth
from tests import evaluation_clips as fake

NUM_CLIPS = 8
NUM_TICKS = 180


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Eight recordings whose own sound stands in for the system under test."""
    store = SoundStore(tmp_path_factory.mktemp("report") / "audio")
    records = []
    for number in range(NUM_CLIPS):
        clip = fake.make_clip(f"clip-{number}", fake.path_deg(NUM_TICKS, seed=number))
        records.append(clip_record(clip, number, motion_peaks_s=[0.5]))
        store.save(rows.GROUND_TRUTH, records[-1].key, clip.audio_LC(), stamp="s", notes={})
    truth_row = rows.stored_row(store, rows.GROUND_TRUTH, "ground truth")
    return store, records, truth_row


def scores_of(bench, row: Row):
    _, records, truth_row = bench
    return score_row(row, records, ground_truth=truth_row).figures


def nulls(bench) -> dict[str, Row]:
    store, records, _ = bench
    made = null_rows(store, records, system=rows.GROUND_TRUTH, panner="given", seed=0)
    return {row.name: row for row in made}


def test_rows_score_the_same_in_several_processes(bench):
    """The first row, which the processes did not share, a random pan and a stored sound."""
    _, records, truth_row = bench
    scorer, made = ClipScorer(records[:2], truth_row), nulls(bench)
    table = [truth_row, made["random_pan"], made["shuffled"]]
    lines: list[str] = []
    together = score_table(table, scorer, num_jobs=2, progress=lines.append)
    assert [line.split(":")[0] for line in lines] == [f"scored {row.name}" for row in table]
    for row, score in zip(table, together, strict=True):
        alone = scorer.score(row)
        assert {n: f.value for n, f in score.figures.items()} == pytest.approx(
            {n: f.value for n, f in alone.figures.items()}, abs=0, rel=0, nan_ok=True
        )


def test_clips_of_several_sources_alone_have_no_timbre_to_compare(bench):
    """Their windows are no single source's, so nothing is left for the literature's figures."""
    _, _, truth_row = bench
    figures = ClipScorer([], truth_row).score(truth_row).figures
    assert {"frechet_left", "onset_f1_50_ms", "bias_skill"} <= set(figures)
    assert all(np.isnan(figure.value) and figure.count == 0 for figure in figures.values())


def test_truth_windows_by_hand():
    """Fixed bearing: every window is scored at it; a source out of sight is scored as gone."""
    azimuth_T = np.concatenate([np.full(60, 20.0), np.full(60, 80.0)])
    clip = fake.make_clip("k", azimuth_T)
    truth = clip_truth(clip.meta)
    windows = window_truth(truth, clip.audio_LC())
    assert truth.class_name == "bell"
    assert windows.on_screen_W.tolist() == [True] * 10 + [False] * 10
    # The first five windows after it left cover one second.
    assert windows.left_W.tolist() == [False] * 10 + [True] * 5 + [False] * 5
    np.testing.assert_allclose(windows.azimuth_W, [20.0] * 10 + [80.0] * 10)


def test_silent_truth_is_not_scored():
    clip = fake.make_clip("k", np.full(60, 20.0), sounding=False)
    windows = window_truth(clip_truth(clip.meta), clip.audio_LC())
    assert not windows.on_screen_W.any()


def test_ground_truth_scores_near_the_top(bench):
    figures = scores_of(bench, bench[2])
    assert figures["pan_correlation"].value > 0.98
    assert figures["sign_accuracy"].value > 0.97
    assert figures["azimuth_error_deg"].value < 2.0
    assert figures["azimuth_slope"].value == pytest.approx(1.0, abs=0.05)
    assert figures["just_left_sign_accuracy"].value > 0.97
    assert figures["level_against_truth_db"].value == pytest.approx(0.0, abs=0.01)


def test_oracle_and_panner_score_like_the_truth(bench):
    for name in ("oracle_pan", "box_centre_panner"):
        figures = scores_of(bench, nulls(bench)[name])
        assert figures["pan_correlation"].value > 0.95, name
        assert figures["sign_accuracy"].value > 0.95, name


def test_mono_scores_nothing(bench):
    figures = scores_of(bench, nulls(bench)["mono"])
    assert figures["pan_correlation"].value == 0.0
    assert figures["sign_accuracy"].value == 0.0
    assert figures["azimuth_slope"].value == 0.0


def test_chance_rows_score_at_chance(bench):
    made = nulls(bench)
    left = scores_of(bench, made["hard_left"])
    assert left["pan_correlation"].value == 0.0
    assert left["sign_accuracy"].value == pytest.approx(0.5, abs=0.12)
    for name in ("random_pan", "shuffled"):
        figures = scores_of(bench, made[name])
        assert abs(figures["pan_correlation"].value) < 0.45, name
        assert figures["sign_accuracy"].value < 0.75, name
    silence = scores_of(bench, made["silence"])
    assert silence["azimuth_error_deg"].value == 90.0
    assert silence["sign_accuracy"].value == 0.0


def test_reversed_channels_score_below_mono(bench):
    _, records, truth_row = bench
    swapped = Row("swapped", "", lambda record: truth_row.render(record)[:, ::-1])
    score = score_row(swapped, records, ground_truth=truth_row)
    mono = score_row(nulls(bench)["mono"], records, ground_truth=truth_row)
    assert score.figures["pan_correlation"].value < -0.98
    assert score.figures["sign_accuracy"].value < 0.03
    assert skill(score, mono).value < -0.5
    assert skill(mono, mono).value == 0.0


def test_skill_of_the_truth(bench):
    _, records, truth_row = bench
    best = score_row(truth_row, records, ground_truth=truth_row)
    mono = score_row(nulls(bench)["mono"], records, ground_truth=truth_row)
    assert skill(best, mono).value > 0.9


def test_mirror_test_answers_to_the_mirror(bench):
    _, records, truth_row = bench
    swapped = Row("swapped", "", lambda record: truth_row.render(record)[:, ::-1])
    turned = mirror_figures(truth_row, swapped, records)
    assert turned["mirror_correlation"].value == pytest.approx(1.0, abs=1e-3)
    assert turned["mirror_swapped"].value > 0.99
    same = mirror_figures(truth_row, truth_row, records)
    assert same["mirror_correlation"].value == pytest.approx(-1.0, abs=1e-3)
    assert same["mirror_swapped"].value == 0.0


def test_derangement_has_no_fixed_point():
    for count in (2, 3, 17):
        other = derangement(count, seed=count)
        assert sorted(other) == list(range(count))
        assert (other != np.arange(count)).all()


def test_hold_last():
    held = hold_last(np.array([np.nan, 5, np.nan, np.nan, -3]))
    np.testing.assert_array_equal(held, [0, 5, 5, 5, -3])


def test_store_forgets_a_sound_of_another_stamp(tmp_path):
    store = SoundStore(tmp_path)
    store.save("model", "k", np.zeros((16, 2)), stamp="a", notes={"n": 1})
    assert store.notes("model", "k", stamp="a") == {"n": 1}
    assert store.notes("model", "k", stamp="b") is None
    assert store.notes("model", "other", stamp="a") is None


@pytest.mark.parametrize(
    ("rate_hz", "channels", "num_samples", "complaint"),
    [
        (44_100, 2, 48_000, "44100 Hz"),
        (48_000, 1, 48_000, "1 channels"),
        (48_000, 2, 40_000, "40000 samples"),
    ],
    ids=["rate", "mono", "short"],
)
def test_rival_wav_is_refused(tmp_path, rate_hz, channels, num_samples, complaint):
    import soundfile

    path = tmp_path / "k.wav"
    soundfile.write(path, np.zeros((num_samples, channels)), rate_hz)
    with pytest.raises(UserError, match=complaint):
        read_rival_wav(path, num_samples=48_000)


def test_rival_wav_may_lack_a_tick(tmp_path):
    import soundfile

    path = tmp_path / "k.wav"
    soundfile.write(path, np.full((47_000, 2), 0.5), TIMING.sample_rate_hz)
    audio_LC = read_rival_wav(path, num_samples=48_000)
    assert audio_LC.shape == (48_000, 2)
    assert (audio_LC[47_000:] == 0).all()
