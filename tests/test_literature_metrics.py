"""The literature's metrics against cases worked out by hand, and the traps they hold."""

import itertools

import numpy as np
import pytest

from spatial_v2a.audio.delay import GCC_WINDOW_SAMPLES, gcc_delay_ms
from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.inference.evaluation import (
    av_align,
    bias_skill,
    literature,
    metrics,
)
from spatial_v2a.inference.evaluation.bias_skill import BiasWindows
from spatial_v2a.timing import TIMING

RATE = TIMING.sample_rate_hz


def noise_L(seconds: float = 1.0, *, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return level * np.random.default_rng(seed).normal(size=round(seconds * RATE))


def panned(mono_L: np.ndarray, *sides: float) -> np.ndarray:
    """Mono whose d = (E_R - E_L) / (E_R + E_L) is `sides[w]` in second w, [L, 2]."""
    d_L = np.repeat(sides, RATE)[: len(mono_L)]
    return np.stack([mono_L * np.sqrt(1 - d_L), mono_L * np.sqrt(1 + d_L)], axis=-1)


def figure(sums: np.ndarray) -> float:
    return float(metrics.ratio(np.asarray(sums)[None])[0])


# --- BiasSkill -----------------------------------------------------------------------------------


def test_bias_windows_by_hand() -> None:
    """Each threshold on either side of its limit."""
    mono = noise_L(6.0)
    # The truth leans left, right, too little (0.25 < 0.3), left, left; it is silent in second 6.
    truth = panned(mono, -0.5, 0.5, 0.25, -0.31, -0.5, -0.5)
    truth[5 * RATE :] = 0.0
    # The sound leans left, too little (0.05 < 0.1), left, right, left but at RMS 5e-4 < 1e-3.
    sound = panned(mono, -0.2, 0.05, -0.5, 0.5, -0.5, -0.5)
    sound[4 * RATE : 5 * RATE] *= 5e-3
    windows = bias_skill.bias_windows(sound, truth)
    np.testing.assert_array_equal(windows.truth_left_W, [1, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(windows.truth_right_W, [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(windows.said_left_W, [1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(windows.said_right_W, [0, 0, 0, 1, 0, 0])
    # Eligible 4: left 3 of which the first is right, right 1 of which none is.
    sums = bias_skill.bias_sums(windows)
    np.testing.assert_array_equal(sums, [4, 3, 1, 1, 0])
    # A_bal = (1/3 + 0/1) / 2
    assert bias_skill.balanced_accuracy(sums[None])[0] == pytest.approx(1 / 6)


def test_bias_windows_of_a_sound_that_ends_early() -> None:
    mono = noise_L(3.0)
    truth = panned(mono, -0.5, -0.5, 0.5)
    windows = bias_skill.bias_windows(truth[:RATE], truth)
    np.testing.assert_array_equal(windows.said_left_W, [1, 0, 0])
    np.testing.assert_array_equal(bias_skill.bias_sums(windows), [3, 2, 1, 1, 0])


def clips_of(truth: list[str], said: list[str]) -> list[BiasWindows]:
    """Clips from letters: L, R or - in every window."""

    def mask(letters: str, letter: str) -> np.ndarray:
        return np.array([x == letter for x in letters])

    return [
        BiasWindows(mask(t, "L"), mask(t, "R"), mask(s, "L"), mask(s, "R"))
        for t, s in zip(truth, said, strict=True)
    ]


def bias_skill_of(clips: list[BiasWindows]) -> tuple[float, float, np.ndarray]:
    """The score over all clips, its null, and the sums behind it."""
    sums_S = sum((bias_skill.bias_sums(clip) for clip in clips), np.zeros(5))
    null = bias_skill.bias_null(clips)
    return float(bias_skill.bias_skill_given(null)(sums_S[None])[0]), null, sums_S


def test_bias_null_of_two_clips_is_the_swap() -> None:
    """Two clips have one derangement, so mu_null is exact."""
    clips = clips_of(["LLR", "RRL"], ["LLR", "LRL"])
    # Swapped: clip 1 says LRL for LLR: 1 of 2 left, 0 of 1 right.
    #          clip 2 says LLR for RRL: 0 of 1 left, 0 of 2 right.
    # Left 1 of 3, right 0 of 3: mu_null = (1/3 + 0) / 2 = 1/6.
    assert bias_skill.bias_null(clips) == pytest.approx(1 / 6)
    # Unswapped: left 2 of 2 and 1 of 1; right 1 of 1 and 1 of 2: A_bal = (3/3 + 2/3) / 2 = 5/6.
    # score = (5/6 - 1/6) / (1 - 1/6) = (4/6) / (5/6) = 0.8
    score, _, sums_S = bias_skill_of(clips)
    assert bias_skill.balanced_accuracy(sums_S[None])[0] == pytest.approx(5 / 6)
    assert score == pytest.approx(0.8)
    assert (sums_S[1], sums_S[3]) == (3, 3)


def test_bias_null_tends_to_the_mean_over_all_derangements() -> None:
    """Five clips have 44 derangements; clips of unequal length are silent past their end."""
    generator = np.random.default_rng(4)
    lengths = [3, 4, 4, 2, 4]
    truth, said = (
        ["".join(generator.choice(list("LR-"), size=n)) for n in lengths] for _ in range(2)
    )
    clips = clips_of(truth, said)

    def balanced(order: tuple[int, ...]) -> float:
        hits, counts = {"L": 0, "R": 0}, {"L": 0, "R": 0}
        for i, j in enumerate(order):
            for w, letter in enumerate(truth[i]):
                if letter != "-":
                    counts[letter] += 1
                    hits[letter] += said[j][w : w + 1] == letter
        return (hits["L"] / counts["L"] + hits["R"] / counts["R"]) / 2

    orders = [
        order
        for order in itertools.permutations(range(5))
        if all(i != j for i, j in enumerate(order))
    ]
    assert len(orders) == 44
    exact = np.mean([balanced(order) for order in orders])
    null = bias_skill.bias_null(clips, seed=1)
    assert null == pytest.approx(exact, abs=0.005)
    assert null == bias_skill.bias_null(clips, seed=1)
    assert null != bias_skill.bias_null(clips, seed=2)


def test_derangements_are_uniform_and_without_fixed_points() -> None:
    orders = bias_skill.derangements(4, num=9000, generator=np.random.default_rng(0))
    assert orders.shape == (9000, 4)
    assert (orders != np.arange(4)).all()
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (9000, 1)))
    # Four clips have nine derangements: 1000 each, standard deviation sqrt(9000 / 9 x 8 / 9) = 30.
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 9 and np.abs(counts - 1000).max() < 4 * 30
    with pytest.raises(ValueError, match="at least two"):
        bias_skill.derangements(1, num=1, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "null", "expected"),
    [
        ("true", 1 / 3, 1.0),
        ("mono", 0.0, 0.0),
        ("silence", 0.0, 0.0),
        ("hard_left", 1 / 2, 0.0),
        ("swapped", 2 / 3, -2.0),
    ],
)
def test_bias_skill_of_the_null_systems(name: str, null: float, expected: float) -> None:
    """Four clips of two windows; in each window two are on the left and two on the right.

    Of the three other clips one is on the own side and two are not: the true sound of another clip
    is right in 1 of 3, its swapped sound in 2 of 3. True: (1 - 1/3) / (1 - 1/3) = 1. Swapped:
    (0 - 2/3) / (1 - 2/3) = -2. Mono says nothing: (0 - 0) / 1 = 0. Hard left has all of the left
    and none of the right, whoever's sound it is: (1/2 - 1/2) / (1/2) = 0.
    """
    mono = noise_L(2.0)
    clips = []
    for pair in [(-0.6, 0.6), (0.6, -0.6), (-0.6, -0.6), (0.6, 0.6)]:
        truth = panned(mono, *pair)
        sound = {
            "true": truth,
            "mono": panned(mono, 0.0, 0.0),
            "hard_left": panned(mono, -1.0, -1.0),
            "swapped": truth[:, ::-1],
            "silence": 0 * truth,
        }[name]
        clips.append(bias_skill.bias_windows(sound, truth))
    score, found_null, _ = bias_skill_of(clips)
    # 10 000 derangements draw the null: 1/3 and 2/3 to within 0.01, so -2 to within 0.1.
    assert found_null == pytest.approx(null, abs=0.01)
    assert score == pytest.approx(expected, abs=0.1 if name == "swapped" else 1e-9)


def test_bias_skill_sees_the_side_and_not_how_far() -> None:
    """Trap: d = 0.11 everywhere the truth is hard left or right scores a perfect 1."""
    mono = noise_L(2.0)
    pairs = [((-1.0, 1.0), (-0.11, 0.11)), ((1.0, -1.0), (0.11, -0.11))]
    clips = [bias_skill.bias_windows(panned(mono, *s), panned(mono, *t)) for t, s in pairs]
    assert bias_skill_of(clips)[0] == 1.0


def test_bias_skill_is_nan_without_enough_windows() -> None:
    one_sided = clips_of(["LL", "LL"], ["LL", "LL"])
    assert np.isnan(bias_skill_of(one_sided)[0])
    assert np.isnan(bias_skill_of(clips_of(["LR"], ["LR"]))[0])
    assert np.isnan(bias_skill_of([])[0])
    short = bias_skill.bias_windows(np.ones((100, 2)), np.ones((100, 2)))
    assert np.isnan(bias_skill_of([short, short])[0])
    assert np.isnan(bias_skill_of(clips_of(["--", "--"], ["LR", "LR"]))[0])
    # Another clip's sound is always right: nothing can be won over chance.
    assert np.isnan(bias_skill_of(clips_of(["LR", "LR"], ["LR", "LR"]))[0])


def test_bias_skill_pools_in_the_bootstrap() -> None:
    clips = clips_of(["LLR", "RRL"], ["LLR", "LRL"])
    sums = np.stack([bias_skill.bias_sums(clip) for clip in clips])
    combine = bias_skill.bias_skill_given(bias_skill.bias_null(clips))
    pooled = metrics.bootstrap_figure(sums, combine)
    assert pooled.value == pytest.approx(0.8) and pooled.count == 6


# --- E-L1 ----------------------------------------------------------------------------------------


def test_envelope_l1_by_hand() -> None:
    """A square wave of 0.5 has RMS 0.5 in every frame; of 0.2, RMS 0.2."""
    square = np.where(np.arange(RATE) % 2, 1.0, -1.0)
    loud, quiet = (np.stack([g * square, g * square], axis=-1) for g in (0.5, 0.2))
    sums = literature.envelope_l1_sums(quiet, loud)
    # Frames of round(512 / 22050 x 48000) = 1115 every 279: (48000 - 1115) // 279 + 1 = 169.
    assert sums[0] == 169
    assert figure(sums) == pytest.approx(0.3)
    # One channel only: the power over both channels is halved, RMS 0.5 / sqrt(2).
    left = loud * [1.0, 0.0]
    assert figure(literature.envelope_l1_sums(left, loud)) == pytest.approx(0.5 - 0.5 / 2**0.5)


def test_envelope_l1_of_a_sound_that_ends_early_counts_silence() -> None:
    loud = np.full((RATE, 2), 0.5)
    assert figure(literature.envelope_l1_sums(loud[:0], loud)) == pytest.approx(0.5)


def test_envelope_l1_rewards_silence() -> None:
    """Trap: silence is as good as the right sound at twice the level, whatever is heard."""
    truth = np.stack([noise_L(), noise_L()], axis=-1)
    too_loud = figure(literature.envelope_l1_sums(2 * truth, truth))
    assert figure(literature.envelope_l1_sums(0 * truth, truth)) == pytest.approx(too_loud)


def test_envelope_l1_is_blind_to_panning() -> None:
    mono = noise_L()
    left, right = panned(mono, -0.9), panned(mono, 0.9)
    assert figure(literature.envelope_l1_sums(left, right)) == pytest.approx(0.0, abs=1e-12)


# --- GCC -----------------------------------------------------------------------------------------


def delayed(mono_L: np.ndarray, samples: int) -> np.ndarray:
    """The right channel comes `samples` after the left (a source on the left for > 0)."""
    shifted = np.roll(mono_L, abs(samples))
    channels = (mono_L, shifted) if samples >= 0 else (shifted, mono_L)
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("samples", [0, 24, -24, 48])
def test_gcc_delay_by_hand(samples: int) -> None:
    """24 samples at 48 kHz are 0.5 ms, 48 the longest delay looked for."""
    delay_ms = gcc_delay_ms(delayed(noise_L(), samples))
    # Windows of 0.064 x 48000 = 3072 samples: 48000 // 3072 = 15.
    assert len(delay_ms) == 15
    np.testing.assert_allclose(delay_ms, samples / 48)


def test_gcc_mse_by_hand() -> None:
    mono = noise_L()
    # Means 0.5 and 0.25 ms: 1000 x (0.25)^2 = 62.5.
    sums = literature.gcc_sums(delayed(mono, 24), delayed(mono, 12))
    assert sums[0] == 1 and figure(sums) == pytest.approx(62.5)
    short = delayed(mono, 24)[:100]
    np.testing.assert_array_equal(literature.gcc_sums(short, short), [0, 0])


def test_gcc_of_a_clip_is_blind_to_panning() -> None:
    """Trap: against a source panned from left to right, every wrong panning scores a perfect 0."""
    mono = noise_L(2.0)
    walk = np.linspace(50, -50, 60)
    truth = pan_mono(mono, walk, samples_per_tick=TIMING.samples_per_tick)
    systems = {
        "reversed": truth[:, ::-1],
        "hard left": np.stack([mono, 0 * mono], axis=-1),
        "mono": np.stack([mono, mono], axis=-1),
    }
    for name, sound in systems.items():
        assert figure(literature.gcc_sums(sound, truth)) == 0.0, name


def test_gcc_prefers_mono_to_honest_stereo() -> None:
    """Trap: dual mono is exact where the truth is centred, or centred on the mean.

    The truth has true delays, 0.5 ms to the left for one second and to the right for the next.
    The honest system has every side right and is 0.125 ms (6 samples) off to the left.
    """
    mono = noise_L(2.0)
    # 15 windows a side: cut each half at a whole window, 15 x 3072 samples.
    half = mono[: 15 * GCC_WINDOW_SAMPLES]
    truth = np.concatenate([delayed(half, 24), delayed(half, -24)])
    honest = np.concatenate([delayed(half, 30), delayed(half, -18)])
    dual_mono = np.concatenate([delayed(half, 0), delayed(half, 0)])
    # Means: truth 0, mono 0, honest (0.625 - 0.375) / 2 = 0.125 ms: 1000 x 0.125^2 = 15.625.
    assert figure(literature.gcc_sums(dual_mono, truth)) == 0.0
    assert figure(literature.gcc_sums(honest, truth)) == pytest.approx(15.625)
    # The same against a truth that stays in the middle: mono is exact by construction.
    assert figure(literature.gcc_sums(honest, dual_mono)) == pytest.approx(15.625)


# --- Spatial AV-Align ----------------------------------------------------------------------------


def test_sound_column_by_hand() -> None:
    """Field of view 90 degrees: column 128 (1 - tan azimuth); 7 dB to the left are 15 degrees."""
    mono = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    gain = 10 ** (-7 / 20)
    left, right = np.stack([mono, gain * mono], axis=-1), np.stack([gain * mono, mono], axis=-1)
    centre, silent = np.stack([mono, mono], axis=-1), np.zeros((RATE, 2))
    hard_left = np.stack([mono, 0 * mono], axis=-1)
    columns = [
        av_align.sound_columns_px(x, fov_deg=90.0) for x in (left, centre, right, silent, hard_left)
    ]
    assert all(len(column) == 10 for column in columns)
    assert len(av_align.sound_columns_px(left[:100], fov_deg=90.0)) == 0
    # tan 15 deg = 0.268: 128 x 0.732 = 93.7 on the left, 128 x 1.268 = 162.3 on the right.
    np.testing.assert_allclose(columns[0], 93.7, atol=0.05)
    np.testing.assert_allclose(columns[1], 128.0)
    np.testing.assert_allclose(columns[2], 162.3, atol=0.05)
    assert np.isnan(columns[3]).all()
    # 30 dB (the most that is told apart) are 45.6 degrees, beyond the edge at 45: column 0.
    np.testing.assert_allclose(columns[4], 0.0)


def test_detection_frames_by_hand() -> None:
    """Quarters of a second at 30 ticks a second: 0, 7.5 (up to 8), 15, 22.5 (up to 23), 30 ..."""
    ticks = [np.full((1, 2), float(tick)) for tick in range(40)]
    assert [int(edges[0, 0]) for edges in av_align.detection_frames(ticks)] == [
        0,
        8,
        15,
        23,
        30,
        38,
    ]
    assert av_align.detection_frames([]) == []
    assert len(av_align.detection_frames(ticks[:1])) == 1


def test_spatial_av_align_by_hand() -> None:
    boxes = [
        np.array([[100.0, 140.0]]),
        np.zeros((0, 2)),
        np.zeros((0, 2)),
        np.array([[10.0, 20.0], [200.0, 256.0]]),
    ]
    sound = np.full(10, np.nan)
    # index 0: frame 0; 140 + 40 = 180 is just within reach, right.
    # index 1: round(0.4) = 0; 181 is too far, wrong.
    # index 3: round(1.2) = 1; the box of frame 0 (one before) still counts: 60 + 40 = 100, right.
    # index 5: round(2.0) = 2; frames 1 to 3: 160 + 40 = 200, right.
    # index 8: round(3.2) = 3; frames 2 and 3: 110 is 50 from 160 and 90 from 20, wrong.
    sound[[0, 1, 3, 5, 8]] = [180.0, 181.0, 60.0, 160.0, 110.0]
    np.testing.assert_array_equal(av_align.spatial_av_align_sums(sound, boxes), [5, 3])


def test_spatial_av_align_without_boxes_or_sound() -> None:
    np.testing.assert_array_equal(av_align.spatial_av_align_sums(np.full(5, 128.0), []), [5, 0])
    np.testing.assert_array_equal(av_align.spatial_av_align_sums(np.full(5, np.nan), []), [0, 0])


def test_spatial_av_align_is_kind_to_centred_mono() -> None:
    """Trap: centred mono is right wherever some box is near the middle, however wrong it is.

    One walker 80 px wide crosses the picture, his centre from 0 to 256 px: mono is right while the
    box's edge is within 40 px of column 128, which is from 128 - 80 = 48 to 208: 160 / 256 = 0.63.
    """
    num_seconds = 50
    # A detection frame reaches one frame around it, 0.25 s of 50 s: next to nothing here.
    centres = np.linspace(0, 256, num_seconds * 4)
    boxes = [np.array([[x - 40, x + 40]]) for x in centres]
    mono = np.full(num_seconds * 10, 128.0)
    assert figure(av_align.spatial_av_align_sums(mono, boxes)) == pytest.approx(0.625, abs=0.02)
    # By centres alone (no width) it is 80 / 256 = 0.31.
    points = [np.array([[x, x]]) for x in centres]
    assert figure(av_align.spatial_av_align_sums(mono, points)) == pytest.approx(0.3125, abs=0.02)
    true = np.interp(np.arange(num_seconds * 10) / 2.5, np.arange(len(centres)), centres)
    assert figure(av_align.spatial_av_align_sums(true, points)) == 1.0


# --- AV-Align ------------------------------------------------------------------------------------


def test_motion_peaks_by_hand() -> None:
    flow = np.array([0.0, 1.0, 0.5, 0.5, 0.05, 0.09, 0.0, 2.0, 2.0, 1.0, 3.0])
    # Index 1 is a peak; 5 too, but under 0.1 px; 7 and 8 are level; the last has no neighbour.
    assert av_align.motion_peaks(flow).tolist() == [1]


def textured(shift_px: int) -> np.ndarray:
    """A smooth random picture [64, 96, 3], shifted to the right."""
    noise = np.random.default_rng(0).uniform(size=(64, 96))
    spectrum = np.fft.fft2(noise) * np.exp(-40 * np.add.outer(*_frequencies(64, 96)))
    smooth = np.fft.ifft2(spectrum).real
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    return np.repeat(np.roll(scaled, shift_px, axis=1)[..., None], 3, axis=-1).astype(np.uint8)


def _frequencies(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(height) ** 2 * 4, np.fft.fftfreq(width) ** 2 * 4


def test_flow_of_a_shift_is_its_length() -> None:
    """Still, then 2 px to the right, then still: the flow is 0, 2, 0 and peaks at picture 2."""
    motion = motion_of([textured(shift) for shift in (0, 0, 2, 2, 2)])
    # The border, where the picture wraps round, has no true flow: about a tenth of the columns.
    np.testing.assert_allclose(motion.flow_px_P, [0, 0, 2, 0, 0], atol=0.4)
    assert motion.peaks_s() == [round(2 / 30, 6)]
    assert len(motion_of([]).flow_px_P) == 0 and motion_of([]).peaks_s() == []
    np.testing.assert_array_equal(motion_of([textured(0)]).flow_px_P, [0.0])


def motion_of(frames: list[np.ndarray]) -> av_align.MotionMeter:
    meter = av_align.MotionMeter()
    for frame in frames:
        meter.add(frame)
    return meter


def test_av_align_by_hand() -> None:
    onsets_s = np.array([0.50, 1.00, 2.00])
    peaks_s = np.array([0.52, 1.00 + 1 / 30, 1.98, 2.01])
    # 0.50 meets 0.52 (20 ms < 33 ms); 1.00 is exactly one frame away, outside; 2.00 meets one.
    # Intersection 2, union 3 + 4 - 2 = 5.
    np.testing.assert_allclose(av_align.av_align_sums(onsets_s, peaks_s), [1, 2 / 5])


def test_av_align_without_peaks() -> None:
    none, some = np.array([]), np.array([1.0])
    np.testing.assert_array_equal(av_align.av_align_sums(none, none), [0, 0])
    np.testing.assert_array_equal(av_align.av_align_sums(some, none), [1, 0])


def test_av_align_rewards_an_onset_everywhere() -> None:
    """Trap: motion that peaks at every other picture makes a rattle of onsets perfect."""
    peaks_s = np.arange(1, 60, 2) / 30
    rattle_s = peaks_s + 0.02
    assert figure(av_align.av_align_sums(rattle_s, peaks_s)) == 1.0
    # The two true steps of those seconds score 2 / 30.
    assert figure(av_align.av_align_sums(peaks_s[[10, 20]], peaks_s)) == pytest.approx(2 / 30)


# --- HelixBench Spatial --------------------------------------------------------------------------


def helix(audio_LC: np.ndarray, seen_T: np.ndarray) -> float:
    return figure(literature.helix_sums(audio_LC, seen_T))


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        pytest.param((0.5, 0.5, -0.5), 100.0, id="sound on the side that is seen"),
        pytest.param((-0.5, -0.5, 0.5), -100.0, id="channels swapped"),
        pytest.param((0.0, 0.0, 0.0), 0.0, id="mono"),
        pytest.param((0.05, 0.05, -0.05), 0.0, id="too little to a side"),
    ],
)
def test_helix_spatial_of_known_sounds(sides: tuple[float, ...], expected: float) -> None:
    """The object is on the right for two seconds, then on the left; windows on the border blur."""
    seen_T = np.repeat([0.6, 0.6, -0.6], TIMING.tick_hz)
    assert helix(panned(noise_L(3.0), *sides), seen_T) == pytest.approx(expected, abs=7.0)


def test_helix_spatial_counts_silence_as_centred() -> None:
    sound = panned(noise_L(2.0), 0.9, 0.9)
    sound[RATE:] = 0.0
    assert helix(sound, np.full(2 * TIMING.tick_hz, 0.6)) == pytest.approx(50.0, abs=6.0)


def test_helix_spatial_leaves_out_what_is_in_the_middle_or_not_seen() -> None:
    sound = panned(noise_L(3.0), 0.5, -0.5, -0.5)
    seen_T = np.repeat([0.6, 0.19, np.nan], TIMING.tick_hz)
    assert helix(sound, seen_T) == pytest.approx(100.0, abs=11.0)
    assert literature.helix_sums(sound, np.full(90, 0.19))[0] == 0


def test_helix_spatial_needs_four_lateral_points_in_a_row() -> None:
    seen_T = np.full(60, np.nan)
    seen_T[:9] = 0.6
    assert literature.helix_sums(panned(noise_L(2.0), 0.5, 0.5), seen_T)[0] == 0
    seen_T[9:12] = 0.6
    assert literature.helix_sums(panned(noise_L(2.0), 0.5, 0.5), seen_T)[0] == 1


def test_audible_share_is_of_the_ticks_with_an_object() -> None:
    sound = panned(noise_L(2.0), 0.0, 0.0)
    sound[RATE:] = 0.0
    seen_T = np.full(60, 0.1)
    seen_T[:15] = np.nan
    in_view, audible = literature.audible_sums(sound, seen_T)
    assert (in_view, audible) == (45, pytest.approx(15, abs=2))
