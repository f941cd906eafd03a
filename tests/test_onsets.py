"""Onset detection on sounds with known onsets; matching and sums against cases worked by hand."""

import numpy as np
import pytest

from spatial_v2a.audio import onsets
from spatial_v2a.inference.evaluation import literature, metrics
from spatial_v2a.timing import TIMING

TIMES_S = np.array([0.5, 1.0, 1.3, 2.0])


def sound_L(kind: str, times_s: np.ndarray = TIMES_S, *, gain: float = 0.3) -> np.ndarray:
    """Three seconds with an onset at each time."""
    generator = np.random.default_rng(0)
    sound = np.zeros(3 * TIMING.sample_rate_hz)
    time_s = np.arange(TIMING.sample_rate_hz // 4) / TIMING.sample_rate_hz
    for start in (times_s * TIMING.sample_rate_hz).astype(int):
        if kind == "click":
            sound[start] += gain
        elif kind == "noise":
            burst = generator.normal(size=len(time_s)) * np.exp(-time_s / 0.03)
            sound[start : start + len(time_s)] += gain * burst
        else:
            tone = np.sin(2 * np.pi * 440 * time_s) * np.exp(-time_s / 0.03)
            sound[start : start + len(time_s)] += gain * tone
    return sound


def both(sound_L: np.ndarray, *, right: float = 1.0) -> np.ndarray:
    return np.stack([sound_L, right * sound_L], axis=-1)


@pytest.mark.parametrize("kind", ["click", "noise", "tone"])
@pytest.mark.parametrize("gain", [0.3, 0.03], ids=["loud", "quiet"])
def test_onsets_are_found_to_3_ms_whatever_their_level(kind: str, gain: float) -> None:
    found_s = onsets.onset_times_s(both(sound_L(kind, gain=gain)))
    np.testing.assert_allclose(found_s, TIMES_S, atol=0.003)


def test_panning_moves_no_onset() -> None:
    """Hard left at the same power: sqrt(2) in one channel for 1 in both."""
    sound = sound_L("noise")
    centred, hard_left = both(sound), both(2**0.5 * sound, right=0.0)
    np.testing.assert_array_equal(*(onsets.onset_times_s(x) for x in (centred, hard_left)))


def test_steady_sound_and_silence_have_no_onset() -> None:
    hiss = np.random.default_rng(1).normal(size=(3 * TIMING.sample_rate_hz, 2))
    time_s = np.arange(3 * TIMING.sample_rate_hz) / TIMING.sample_rate_hz
    hum = np.sin(2 * np.pi * 70 * time_s) + 0.5 * np.sin(2 * np.pi * 113 * time_s)
    for name, sound in {
        "hiss": 0.05 * hiss,
        "hum": both(0.2 * hum),
        "silence": 0 * hiss,
        "nothing": hiss[:100],
    }.items():
        assert len(onsets.onset_times_s(sound)) == 0, name


def test_matching_is_one_to_one() -> None:
    """Two onsets near one true onset are one pair; the nearer of them is taken."""
    pairs = onsets.match_onsets(np.array([1.00, 1.03]), np.array([1.02]), tolerance_s=0.05)
    # |1.00 - 1.02| = 20 ms, |1.03 - 1.02| = 10 ms.
    assert pairs == [(1, 0)]


def test_matching_prefers_more_pairs_over_closer_ones() -> None:
    """Pairing the nearest first would leave one onset alone."""
    first, second = np.array([0.00, 0.10]), np.array([0.08, 0.19])
    # Nearest first: 0.10-0.08 (20 ms), then 0.00-0.19 (190 ms) is over 100 ms: one pair.
    # Optimal: 0.00-0.08 (80 ms) and 0.10-0.19 (90 ms): two pairs.
    assert onsets.match_onsets(first, second, tolerance_s=0.1) == [(0, 0), (1, 1)]


def test_matching_equals_trying_everything() -> None:
    """Against exhaustive search over all one-to-one pairings of up to five onsets."""
    generator = np.random.default_rng(3)

    def best(first: list[float], second: list[float]) -> tuple[int, float]:
        if not first:
            return 0, 0.0
        options = [best(first[1:], second)]
        for j, time in enumerate(second):
            if abs(first[0] - time) <= 0.1:
                pairs, minus = best(first[1:], second[:j] + second[j + 1 :])
                options.append((pairs + 1, minus - abs(first[0] - time)))
        return max(options)

    for _ in range(50):
        first, second = (np.sort(generator.uniform(0, 0.6, size=n)) for n in (5, 4))
        pairs = onsets.match_onsets(first, second, tolerance_s=0.1)
        count, minus = best(first.tolist(), second.tolist())
        assert len(pairs) == count
        assert -sum(abs(first[i] - second[j]) for i, j in pairs) == pytest.approx(minus)


@pytest.mark.parametrize(("tolerance_ms", "pairs"), [(20, 1), (50, 2), (100, 3)])
def test_f1_by_hand(tolerance_ms: int, pairs: int) -> None:
    """Errors of 20, 40 and 80 ms (the first lies on the edge and counts), one onset invented."""
    truth_s = np.array([1.0, 2.0, 3.0])
    found_s = np.array([1.02, 2.04, 2.92, 4.0])
    sums = literature.onset_f1_sums(found_s, truth_s, tolerance_ms=tolerance_ms)
    # 4 found + 3 true = 7; F1 = 2 pairs / 7.
    np.testing.assert_array_equal(sums, [7, 2 * pairs])
    assert metrics.ratio(sums[None])[0] == pytest.approx(2 * pairs / 7)


def test_f1_pools_over_clips() -> None:
    one = literature.onset_f1_sums(np.array([1.0]), np.array([1.0]), tolerance_ms=20)
    none = literature.onset_f1_sums(np.array([]), np.array([1.0, 2.0]), tolerance_ms=20)
    # 1 found + 1 true and 0 found + 2 true are 4 onsets with one pair: 2 x 1 / 4 = 0.5.
    np.testing.assert_array_equal(one + none, [4, 2])
    assert metrics.ratio((one + none)[None])[0] == 0.5


def test_median_error_by_hand() -> None:
    truth_s = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found_s = np.array([1.003, 2.010, 2.988, 4.090, 5.2])
    # 3, 10, 12 and 90 ms; 200 ms has no partner. Lower median of four: the second, 10 ms.
    sums = literature.onset_error_sums(found_s, truth_s)
    assert sums[0] == 4
    assert literature.median_error_ms(sums[None])[0] == 10
    # A second clip with 12 and 13 ms: 3, 10, 12, 12, 13, 90; the third is 12 ms.
    other = literature.onset_error_sums(np.array([1.012, 2.013]), np.array([1.0, 2.0]))
    assert literature.median_error_ms((sums + other)[None])[0] == 12
    assert metrics.bootstrap_figure(np.stack([sums, other]), literature.median_error_ms).value == 12


def test_no_pairs_no_median() -> None:
    sums = literature.onset_error_sums(np.array([]), np.array([1.0]))
    assert np.isnan(literature.median_error_ms(sums[None])[0])


def test_the_median_alone_flatters_few_lucky_onsets() -> None:
    """Why it stands beside F1: one exact onset of five has median 0 ms, and F1 1/3."""
    truth_s = np.arange(1.0, 6.0)
    assert (
        literature.median_error_ms(literature.onset_error_sums(truth_s[:1], truth_s)[None])[0] == 0
    )
    sums = literature.onset_f1_sums(truth_s[:1], truth_s, tolerance_ms=20)
    # 2 x 1 / (1 + 5)
    assert metrics.ratio(sums[None])[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("num_samples", [0, 300, 47_999, 48_000, 48_120, 61_000])
def test_onsets_block_by_block_are_those_of_the_whole(num_samples: int) -> None:
    """Blocks of 0.3 s, with clicks at and beside their borders."""
    audio_LC = 0.001 * np.random.default_rng(0).normal(size=(num_samples, 2))
    for start in range(6_000, num_samples - 600, 5_990):
        audio_LC[start : start + 500] *= 50
    whole_J = onsets.pick_peaks(onsets.spectral_flux_db(audio_LC))
    assert len(whole_J) >= num_samples // 8_000
    meter = onsets.OnsetMeter(block_ticks=9)
    for start in range(0, num_samples, 9 * TIMING.samples_per_tick):
        meter.add(audio_LC[start : start + 9 * TIMING.samples_per_tick])
    np.testing.assert_array_equal(meter.times_s, whole_J * onsets.HOP_S)
    np.testing.assert_array_equal(onsets.onset_times_s(audio_LC), meter.times_s)
