"""The pan curve answers to error, movement, lag and distance by the amount that was put in."""

import numpy as np
import pytest

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.inference.evaluation import metrics, trajectory
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import clip_truth
from tests import evaluation_clips as fake

TICKS = 300
SAMPLES = TIMING.samples_per_tick


def swing_deg(*, size_deg: float = 30.0, period: float = 120.0) -> np.ndarray:
    return size_deg * np.sin(2 * np.pi * np.arange(TICKS) / period)


def panned(azimuth_T: np.ndarray, *, seed: int = 0) -> np.ndarray:
    return pan_mono(fake.noise_L(TICKS * SAMPLES, seed=seed), azimuth_T, samples_per_tick=SAMPLES)


def curve_of(audio_LC: np.ndarray) -> trajectory.SoundCurve:
    return trajectory.sound_curve(audio_LC, num_ticks=TICKS)


@pytest.fixture(scope="module")
def true_T() -> np.ndarray:
    clip = fake.make_clip("swing", swing_deg())
    return trajectory.true_curve_deg(clip_truth(clip.meta), curve_of(clip.audio_LC()))


def lag_of(audio_LC: np.ndarray, true_T: np.ndarray) -> float:
    return float(trajectory.lag_ms(trajectory.lag_sums(curve_of(audio_LC), true_T)[None])[0])


def test_mean_over_centred_ticks() -> None:
    values = np.array([0.0, 0, 0, 7, 0, 0, 0, 0])
    np.testing.assert_allclose(trajectory.centred_mean(values), [1, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("lag_samples", [-4800, 0, 1600])
def test_lag_is_reported_as_it_is(true_T: np.ndarray, lag_samples: int) -> None:
    """100 ms is 4800 samples; half a tick (17 ms) is allowed."""
    late_LC = np.roll(panned(swing_deg()), lag_samples, axis=0)
    late_LC[:lag_samples] *= lag_samples < 0
    assert lag_of(late_LC, true_T) == pytest.approx(lag_samples / 48.0, abs=17.0)


def test_no_lag_where_nothing_follows(true_T: np.ndarray) -> None:
    for audio_LC in (panned(np.zeros(TICKS)), 0 * panned(swing_deg())):
        assert np.isnan(lag_of(audio_LC, true_T))


@pytest.mark.parametrize("moved_deg", [-10.0, 5.0])
def test_static_error_is_reported_as_it_is(true_T: np.ndarray, moved_deg: float) -> None:
    sums = trajectory.bias_sums(curve_of(panned(swing_deg() + moved_deg)), true_T)
    assert metrics.ratio(sums[None])[0] == pytest.approx(moved_deg, abs=2.0)


def test_error_grows_with_noise(true_T: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    wander_T = trajectory.centred_mean(rng.normal(size=TICKS) * 3.0)
    errors = []
    for size in (0.0, 2.0, 5.0, 10.0):
        sums = trajectory.squared_error_sums(
            curve_of(panned(swing_deg() + size * wander_T)), true_T
        )
        errors.append(float(trajectory.root_mean(sums[None])[0]))
    assert errors[0] < 1.5
    assert all(later > earlier + 0.5 for earlier, later in zip(errors, errors[1:], strict=False))


def test_silence_counts_the_maximum_error(true_T: np.ndarray) -> None:
    sums = trajectory.squared_error_sums(curve_of(0 * panned(swing_deg())), true_T)
    assert trajectory.root_mean(sums[None])[0] == pytest.approx(90.0)


def test_direction_of_movement(true_T: np.ndarray) -> None:
    def share(azimuth_T: np.ndarray) -> float:
        sums = trajectory.direction_sums(curve_of(panned(azimuth_T)), true_T)
        assert sums[0] > 100
        return float(metrics.ratio(sums[None])[0])

    assert share(swing_deg()) > 0.97
    assert share(-swing_deg()) == 0.0
    assert share(np.zeros(TICKS)) == 0.0
    assert share(0.3 * swing_deg()) > 0.9


def test_distance_by_hand() -> None:
    """A level that falls 6.02 dB per doubling is reported as that, at rank correlation -1."""
    distance_T = 100.0 * 2.0 ** (np.arange(TICKS) / 100.0)
    clip = fake.make_clip("far", np.zeros(TICKS))
    meta = clip.meta
    for tick, distance in zip(meta["ticks"], distance_T, strict=True):
        tick["sources"][0]["distance"] = float(distance)
    truth = clip_truth(meta)
    gain_L = np.repeat(100.0 / distance_T, SAMPLES)[:, None]
    sound, loud = curve_of(panned(np.zeros(TICKS)) * gain_L), curve_of(clip.audio_LC())
    slope = metrics.slope(trajectory.distance_sums(sound, truth, loud)[None])[0]
    assert slope == pytest.approx(-6.02, abs=0.2)
    assert trajectory.rank_sums(sound, truth, loud)[1] < -0.98
    steady = trajectory.rank_sums(loud, truth, loud)
    assert steady[0] == 1.0 and abs(steady[1]) < 0.5
