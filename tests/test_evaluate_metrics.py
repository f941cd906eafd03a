"""The benchmark's figures against cases worked out by hand."""

import numpy as np
import pytest

from spatial_v2a.audio.panning import (
    law_azimuth_deg,
    law_level_difference_db,
    pan_gains,
    pan_mono,
)
from spatial_v2a.audio.stereo import (
    level_dbfs,
    level_difference_db,
    sound_level_dbfs,
    window_energies,
)
from spatial_v2a.inference.evaluation import metrics
from spatial_v2a.timing import TIMING


def windows(audio_LC: np.ndarray) -> np.ndarray:
    return window_energies(audio_LC, window_samples=9600)


def tone_L(seconds: float = 1.0) -> np.ndarray:
    time_s = np.arange(int(seconds * TIMING.sample_rate_hz)) / TIMING.sample_rate_hz
    return np.sin(2 * np.pi * 440 * time_s)


@pytest.mark.parametrize(
    ("azimuth_deg", "difference_db"),
    [(0, 0), (15, 7), (-26, -13), (42, 25), (60, 50), (90, 50), (150, 16), (-165, -7)],
)
def test_law(azimuth_deg, difference_db):
    assert law_level_difference_db(np.array(azimuth_deg)) == pytest.approx(difference_db)


def test_law_inverse():
    azimuth_deg = np.linspace(-59, 59, 31)
    np.testing.assert_allclose(law_azimuth_deg(law_level_difference_db(azimuth_deg)), azimuth_deg)


def test_gains_keep_power_and_centre():
    gains = pan_gains(np.array([-20.0, 0.0, 6.0]))
    np.testing.assert_allclose((gains**2).sum(axis=-1), 2.0)
    np.testing.assert_allclose(gains[1], [1.0, 1.0])
    np.testing.assert_allclose(20 * np.log10(gains[:, 0] / gains[:, 1]), [-20, 0, 6])


def test_level_difference_is_positive_left_and_clipped():
    sound = tone_L()
    halved = np.stack([sound, sound / 2], axis=-1)
    np.testing.assert_allclose(level_difference_db(windows(halved)), 20 * np.log10(2), atol=1e-3)
    left_only = np.stack([sound, 0 * sound], axis=-1)
    np.testing.assert_allclose(level_difference_db(windows(left_only)), 30.0)
    np.testing.assert_allclose(level_difference_db(windows(0 * halved)), 0.0)


def test_level_of_full_scale_sine():
    both = np.stack([tone_L(), tone_L()], axis=-1)
    np.testing.assert_allclose(level_dbfs(windows(both)), -3.01, atol=0.01)
    assert sound_level_dbfs(both) == pytest.approx(-3.01, abs=0.01)
    assert sound_level_dbfs(np.zeros((10, 2))) == -120.0


def test_pan_mono_follows_the_path():
    panned = pan_mono(tone_L(2.0), np.full(60, 15.0), samples_per_tick=TIMING.samples_per_tick)
    np.testing.assert_allclose(level_difference_db(windows(panned)), 7.0, atol=0.01)


def test_correlation_and_slope_equal_numpy():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 200))
    y = y + 0.5 * x
    sums = metrics.moments(x, y)[None]
    assert metrics.correlation(sums)[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert metrics.slope(sums)[0] == pytest.approx(np.polyfit(x, y, 1)[0])


def test_correlation_pools_over_clips():
    """Sums of two clips give the correlation of their windows together."""
    x, y = np.array([0.0, 1, 2, 10, 11, 12]), np.array([0.0, 1, 2, -5, -4, -3])
    pooled = metrics.moments(x[:3], y[:3]) + metrics.moments(x[3:], y[3:])
    assert metrics.correlation(pooled[None])[0] == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_constant_pan_correlates_zero():
    sums = metrics.moments(np.array([-10.0, 0, 10]), np.full(3, 30.0))
    assert metrics.correlation(sums[None])[0] == 0.0


def test_sign_sums_by_hand():
    azimuth = np.array([20.0, 20, -20, -20, 3, -4])
    difference = np.array([6.0, 0.5, -6, 6, -6, 6])
    # Off centre: four. Right: the first and the third. Under 1 dB is wrong.
    np.testing.assert_array_equal(metrics.sign_sums(difference, azimuth), [4, 2])


def test_azimuth_error_by_hand():
    azimuth = np.array([15.0, -26, 15])
    difference = np.array([7.0, 0, 7])
    audible = np.array([True, True, False])
    np.testing.assert_allclose(
        metrics.azimuth_error_sums(difference, azimuth, audible), [3, 0 + 26 + 90]
    )


def test_mirror_sums_by_hand():
    original, mirrored = np.array([6.0, -6, 0.2, 6]), np.array([-6.0, -6, 0.1, -0.5])
    np.testing.assert_array_equal(metrics.mirror_sums(original, mirrored), [3, 1])


def test_clip_correlation_needs_movement():
    still = metrics.clip_correlation_sums(np.arange(20.0), np.full(20, 10.0))
    np.testing.assert_array_equal(still, [0, 0])
    moving = metrics.clip_correlation_sums(np.arange(20.0), np.arange(20.0) * 2)
    np.testing.assert_allclose(moving, [1, 1])


def test_bootstrap_interval_of_a_mean():
    """The interval of a mean of N unit normals is about +-1.96 / sqrt(N), and repeats exactly."""
    values = np.random.default_rng(1).normal(size=100)
    sums = np.stack([np.ones(100), values], axis=1)
    figure = metrics.bootstrap_figure(sums, metrics.ratio)
    assert figure.value == pytest.approx(values.mean())
    assert figure.count == 100
    assert figure.high - figure.low == pytest.approx(2 * 1.96 / 10, rel=0.2)
    assert figure == metrics.bootstrap_figure(sums, metrics.ratio)


def test_nothing_to_score_is_nan():
    figure = metrics.bootstrap_figure(np.zeros((3, 2)), metrics.ratio)
    assert np.isnan(figure.value) and figure.count == 0
