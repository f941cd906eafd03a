"""Frechet distances against closed forms, and what the fixed embeddings hear and do not hear."""

import numpy as np
import pytest

from spatial_v2a.inference.evaluation import frechet
from spatial_v2a.inference.evaluation.frechet import frechet_distance, frechet_figure
from spatial_v2a.timing import TIMING

RATE = TIMING.sample_rate_hz


def noise_LC(seconds: float = 2.0, *, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """Independent noise in both channels."""
    return level * np.random.default_rng(seed).normal(size=(round(seconds * RATE), 2))


def tone_L(frequency_hz: float, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * RATE)) / RATE)


# --- the distance --------------------------------------------------------------------------------


def test_distance_by_hand_in_one_dimension() -> None:
    """Means 2 and 5, variances 2 and 8: (2 - 5)^2 + 2 + 8 - 2 sqrt(2 x 8) = 9 + 10 - 8 = 11."""
    first, second = np.array([[1.0], [3.0]]), np.array([[3.0], [7.0]])
    assert frechet_distance(first, second) == pytest.approx(11.0)
    assert frechet_distance(second, first) == pytest.approx(11.0)


def test_distance_by_hand_where_covariances_do_not_commute() -> None:
    """Two rank-one covariances in the plane: variance 2 along x, variance 2 along the diagonal.

    C1 = [[2, 0], [0, 0]], C2 = [[1, 1], [1, 1]]: tr C1 + tr C2 = 4. C1 C2 = [[2, 2], [0, 0]] has
    the eigenvalue 2: trace of its root sqrt(2). Means agree: 4 - 2 sqrt(2) = 1.172.
    """
    first = np.array([[-1.0, 0.0], [1.0, 0.0]])
    second = np.array([[-1.0, -1.0], [1.0, 1.0]]) / 2**0.5
    assert frechet_distance(first, second) == pytest.approx(4 - 2 * 2**0.5)


@pytest.mark.parametrize("num", [5, 400], ids=["fewer than D", "more than D"])
def test_distance_equals_the_matrix_root(num: int) -> None:
    """Against eigenvalues of C1 C2, for singular covariances too."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(num, 12)) @ generator.normal(size=(12, 12))
    second = generator.normal(size=(num + 2, 12)) @ generator.normal(size=(12, 12)) + 0.3
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = np.sqrt(np.maximum(np.linalg.eigvals(c1 @ c2).real, 0)).sum()
    gap = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    expected = gap + np.trace(c1) + np.trace(c2) - 2 * root
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_distance_of_a_set_to_itself_is_zero_and_of_too_few_nan() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 40))
    assert frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(frechet_distance(rows[:1], rows))
    assert np.isnan(frechet_distance(rows, rows[:0]))


def test_small_sets_score_too_high() -> None:
    """Trap: two samples of one distribution are far apart when there are few; it falls with N."""
    generator = np.random.default_rng(2)
    few, many = (frechet_distance(*generator.normal(size=(2, n, 20))) for n in (30, 3000))
    assert few > 5 and many < 0.2


def test_figure_has_the_jackknife_interval() -> None:
    """One dimension, one clip moved: the interval covers the value, and repeats exactly."""
    generator = np.random.default_rng(3)
    first = [generator.normal(size=(4, 1)) for _ in range(40)]
    second = [rows + generator.normal(1.0, 0.1, size=(4, 1)) for rows in first]
    figure = frechet_figure(first, second)
    assert figure.value == pytest.approx(
        frechet_distance(np.concatenate(first), np.concatenate(second))
    )
    assert figure.count == 160
    # The distance is the squared mean shift, 1, plus nearly nothing; the mean of 160 shifts with
    # deviation 0.1 has the error 0.1 / sqrt(160) = 0.0079, its square twice that: +-1.96 x 0.0158.
    assert figure.value == pytest.approx(1.0, abs=0.05)
    assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * 0.0158, rel=0.35)
    assert figure == frechet_figure(first, second)


def test_figure_of_one_clip_and_of_none() -> None:
    rows = np.random.default_rng(4).normal(size=(10, 3))
    one = frechet_figure([rows], [rows + 1])
    assert one.value == pytest.approx(3.0) and np.isnan(one.low)
    assert np.isnan(frechet_figure([rows[:0]], [rows]).value)
    # Clips too short for a window are no error.
    some = frechet_figure([rows, rows[:0], rows, rows], [rows + 1, rows[:0], rows + 1, rows + 1])
    assert some.value == pytest.approx(3.0)


# --- what the embeddings hear --------------------------------------------------------------------


def test_views_by_hand() -> None:
    audio = np.array([[0.5, 0.1]])
    views = [frechet.view(audio, name)[0] for name in frechet.VIEWS]
    np.testing.assert_allclose(views, [0.5, 0.1, 0.3, 0.2])


def test_timbre_level_of_a_tone_by_hand() -> None:
    """A full-scale sine of 1 kHz peaks at power 1 in its bin; amplitude 0.1 is 20 dB lower.

    A band adds the triangle-weighted bins of the Hann window's main lobe: between 0 and +1.8 dB.
    """
    loud, quiet = (frechet.timbre_embedding(gain * tone_L(1000)) for gain in (1.0, 0.1))
    # 2 s of sound: windows at 0, 0.5 and 1 s.
    assert loud.shape == (3, frechet.TIMBRE_WIDTH) == (3, 144)
    level_db = loud[1, :48].max() * frechet.LEVEL_SCALE_DB
    assert -3.0 < level_db < 1.8
    band = loud[1, :48].argmax()
    gap_db = (loud - quiet)[1, band] * frechet.LEVEL_SCALE_DB
    assert gap_db == pytest.approx(20.0, abs=0.01)
    # A steady tone has no spread and no modulation.
    np.testing.assert_allclose(loud[1, 48 + band], 0.0, atol=0.01)


def test_timbre_modulation_by_hand() -> None:
    """A level swinging by +-6 dB five times a second has an RMS of 6 / sqrt(2) dB in 4 - 8 Hz."""
    time_s = np.arange(2 * RATE) / RATE
    swing_db = 6 * np.sin(2 * np.pi * 5 * time_s)
    noise = noise_LC(level=0.3)[:, 0]
    row = frechet.timbre_embedding(noise * 10 ** (swing_db / 20))[1]
    modulation_db = row[96:].reshape(6, 8)[:, -1] * frechet.MODULATION_SCALE_DB
    assert modulation_db.argmax() == 2
    assert modulation_db[2] == pytest.approx(6 / 2**0.5, abs=0.25)
    # Steady noise is flat up to the flutter of its own bands.
    still_db = frechet.timbre_embedding(noise)[1, 96:].reshape(6, 8)[:, -1]
    assert still_db[2] * frechet.MODULATION_SCALE_DB < 0.5


def test_stereo_embedding_by_hand() -> None:
    """Noise 6.02 dB louder on the left and 0.25 ms early there; then dual mono."""
    mono = noise_LC()[:, 0]
    early = np.stack([mono, np.roll(mono, 12) / 2], axis=-1)
    row = frechet.stereo_embedding(early)[1]
    assert len(row) == frechet.STEREO_WIDTH == 81
    np.testing.assert_allclose(row[:16] * 30, 20 * np.log10(2), atol=0.5)
    # 12 samples are 4 steps of 3: the peak lies 4 past the middle (the right channel is late).
    assert row[48:].argmax() == frechet.NUM_DELAY_STEPS + 4
    same = frechet.stereo_embedding(np.stack([mono, mono], axis=-1))[1]
    np.testing.assert_allclose(same[:32], 0.0, atol=1e-6)
    np.testing.assert_allclose(same[32:48], 1.0, atol=1e-3)
    assert same[48:].argmax() == frechet.NUM_DELAY_STEPS
    assert same[48:].max() == pytest.approx(1.0, abs=0.01)


def test_independent_channels_do_not_correlate() -> None:
    row = frechet.stereo_embedding(noise_LC())[1]
    # The lowest of the bands spans few bins: over 1 s its correlation still scatters by 0.1.
    np.testing.assert_allclose(row[32:48], 0.0, atol=0.35)
    assert np.abs(row[48:]).max() < 0.1


def test_the_stereo_embedding_is_blind_to_what_sounds() -> None:
    """Steady and throbbing noise, both in the middle, differ in timbre and not in place."""
    throb = 1 + 0.9 * tone_L(5)
    mono = [noise_LC()[:, 0], noise_LC(seed=1)[:, 0] * throb]
    both = [np.stack([x, x], axis=-1) for x in mono]
    place = [frechet.stereo_embedding(x) for x in both]
    # The floor of -80 dB weighs a little more where the throb is faint.
    assert np.abs(place[0] - place[1]).max() < 0.02
    timbre = [frechet.timbre_embedding(x) for x in mono]
    assert np.abs(timbre[0] - timbre[1]).max() > 0.3


def test_silence_and_short_sounds() -> None:
    silent = np.zeros((2 * RATE, 2))
    row = frechet.timbre_embedding(silent[:, 0])[1]
    # All bands at the floor of -80 dB, and nothing moves.
    np.testing.assert_allclose(row[:48] * frechet.LEVEL_SCALE_DB, -80.0, atol=1e-3)
    np.testing.assert_allclose(row[48:], 0.0, atol=1e-6)
    np.testing.assert_allclose(frechet.stereo_embedding(silent), 0.0, atol=1e-6)
    for num_samples in (0, 100, RATE - 1):
        assert frechet.timbre_embedding(silent[:num_samples, 0]).shape == (0, 144)
        assert frechet.stereo_embedding(silent[:num_samples]).shape == (0, 81)
    assert frechet.timbre_embedding(silent[:RATE, 0]).shape == (1, 144)


def test_distances_per_view_tell_mono_and_hard_left() -> None:
    """Mono has the truth's mid exactly and no side; hard left has no right."""
    truth = [noise_LC(4.0, seed=seed) for seed in range(6)]
    mono = [np.repeat(x.mean(axis=1, keepdims=True), 2, axis=1) for x in truth]
    hard_left = [x * [1.0, 0.0] for x in truth]

    def distance(sounds: list[np.ndarray], name: str) -> float:
        rows = [
            np.concatenate([frechet.timbre_embedding(frechet.view(x, name)) for x in s])
            for s in (sounds, truth)
        ]
        return frechet_distance(*rows)

    assert distance(mono, "mid") == pytest.approx(0.0, abs=1e-6)
    assert distance(hard_left, "left") == pytest.approx(0.0, abs=1e-6)
    assert min(distance(mono, "side"), distance(hard_left, "right")) > 100


def test_stereo_distance_is_blind_to_swapped_sides() -> None:
    """Trap: FSAD compares sets, so wrong sides on every clip cost nothing when both are frequent.

    Mono is far, the true sides reversed are at 0: the very opposite of BiasSkill.
    """
    gains = [(1.0, 0.3), (0.3, 1.0)] * 4
    truth = [noise_LC(seed=s // 2)[:, :1] * pair for s, pair in enumerate(gains)]
    mono = [np.repeat(x.mean(axis=1, keepdims=True), 2, axis=1) for x in truth]
    rows = [
        np.concatenate([frechet.stereo_embedding(x) for x in sounds])
        for sounds in (truth, [x[:, ::-1] for x in truth], mono)
    ]
    assert frechet_distance(rows[1], rows[0]) < 1e-3
    assert frechet_distance(rows[2], rows[0]) > 0.5
