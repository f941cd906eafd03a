"""Stereo measures against cases worked out by hand."""

import numpy as np
import pytest

from spatial_v2a.audio.stereo import (
    StereoMeter,
    level_dbfs,
    level_difference_db,
    mid_side_dbfs,
    pan_curve,
    smooth_energies,
    summarize,
    tick_energies,
)
from spatial_v2a.timing import TIMING

TICK = TIMING.samples_per_tick


def constant(left: float, right: float, num_ticks: int = 4) -> np.ndarray:
    return np.tile(np.array([left, right], np.float32), (num_ticks * TICK, 1))


def test_energies_of_whole_and_partial_ticks() -> None:
    audio_LC = np.concatenate([constant(0.5, 0.25, 2), constant(0.5, -0.25, 1)[: TICK // 3]])
    energies = tick_energies(audio_LC, samples_per_tick=TICK)
    expected = [[0.25, 0.0625, 0.125], [0.25, 0.0625, 0.125], [0.25, 0.0625, -0.125]]
    assert np.allclose(energies, expected), energies
    assert tick_energies(audio_LC[:0], samples_per_tick=TICK).shape == (0, 3)


@pytest.mark.parametrize(
    ("left", "right", "expected_db"),
    [(0.5, 0.5, 0.0), (0.5, 0.25, 6.0206), (0.25, 0.5, -6.0206), (0.5, 0.0, 30.0), (0, 0, 0.0)],
    ids=["centre", "left_6dB", "right_6dB", "hard_left_clipped", "silence"],
)
def test_level_difference_is_positive_to_the_left(
    left: float, right: float, expected_db: float
) -> None:
    energies = tick_energies(constant(left, right), samples_per_tick=TICK)
    assert np.allclose(level_difference_db(energies), expected_db, atol=1e-3)


@pytest.mark.parametrize(
    ("left", "right", "mid_db", "side_db"),
    [(0.5, 0.5, -6.0206, -120.0), (0.5, -0.5, -120.0, -6.0206), (0.5, 0.0, -12.0412, -12.0412)],
    ids=["mono", "opposite_phase", "hard_left"],
)
def test_mid_and_side(left: float, right: float, mid_db: float, side_db: float) -> None:
    energies = tick_energies(constant(left, right), samples_per_tick=TICK)
    assert np.allclose(mid_side_dbfs(energies), (mid_db, side_db), atol=1e-3)


def test_summary_counts_left_centre_right_and_silence() -> None:
    parts = [
        constant(0.4, 0.1, 5),
        constant(0.3, 0.3, 3),
        constant(0.1, 0.4, 2),
        constant(0, 0, 10),
    ]
    summary = summarize(tick_energies(np.concatenate(parts), samples_per_tick=TICK))
    found = (summary.left, summary.centre, summary.right, summary.silent)
    assert np.allclose(found, (0.5, 0.3, 0.2, 0.5)), found


def test_summary_of_nothing_and_of_silence() -> None:
    for energies in (np.zeros((0, 3)), np.zeros((5, 3))):
        summary = summarize(energies)
        assert (summary.left, summary.centre, summary.right) == (0, 0, 0)
        assert summary.mid_dbfs == summary.side_dbfs == -120.0


def test_pan_curve_is_blank_where_it_is_silent() -> None:
    audio_LC = np.concatenate([constant(0.5, 0.25, 20), constant(0, 0, 20)])
    curve = pan_curve(tick_energies(audio_LC, samples_per_tick=TICK), window_ticks=5)
    assert np.allclose(curve[:18], 6.0206, atol=1e-3)
    assert np.isnan(curve[23:]).all() and not np.isnan(curve[:22]).any()


def test_smoothing_keeps_the_mean_at_the_ends() -> None:
    energies = np.arange(15.0).reshape(5, 3)
    smooth = smooth_energies(energies, window_ticks=3)
    assert np.allclose(smooth[:, 0], [1.5, 3, 6, 9, 10.5])
    with pytest.raises(ValueError, match="odd"):
        smooth_energies(energies, window_ticks=4)


def test_meter_agrees_with_the_whole() -> None:
    generator = np.random.default_rng(3)
    audio_LC = generator.normal(0, 0.1, (6 * TICK, 2)).astype(np.float32)
    meter = StereoMeter()
    for tick in range(6):
        meter.add(audio_LC[tick * TICK : (tick + 1) * TICK])
    whole = tick_energies(audio_LC, samples_per_tick=TICK)
    assert np.allclose(meter.energies_TE, whole)
    assert level_dbfs(whole) == pytest.approx(-20.0, abs=0.5)
