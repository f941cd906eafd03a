"""BiasSkill: is the sound on the true side more often than another clip's sound would be?

STAGEBENCH.md, point 10. d = (E_R - E_L) / (E_R + E_L) of windows of 1 s.
Legend: N clips, W windows, S sums, R derangements or summed rows, L samples, C audio channels.
Sign: d grows to the RIGHT, as defined there; the rest of the project counts left as positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatial_v2a.audio.stereo import window_energies
from spatial_v2a.inference.evaluation.metrics import Combine
from spatial_v2a.timing import TIMING

WINDOW_SAMPLES = TIMING.sample_rate_hz
ELIGIBLE_BIAS, ELIGIBLE_RMS = 0.3, 1e-4
HEARD_BIAS, HEARD_RMS = 0.1, 1e-3
NUM_DERANGEMENTS = 10_000
# Permutations are drawn in blocks of about this many numbers (16 MB).
BLOCK_NUMBERS = 2_000_000


@dataclass(frozen=True)
class BiasWindows:
    """One clip for BiasSkill: which of its 1 s windows the truth and the sound put to which side.

    Attributes:
        truth_left_W, truth_right_W: |d| >= 0.3 and RMS >= 1e-4 in the ground truth.
        said_left_W, said_right_W: |d| >= 0.1 and RMS >= 1e-3 in the sound under test.
    """

    truth_left_W: np.ndarray
    truth_right_W: np.ndarray
    said_left_W: np.ndarray
    said_right_W: np.ndarray


def _sides(audio_LC: np.ndarray, *, bias: float, rms: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows [W] that lean left, and right, by `bias` and are at least `rms` loud."""
    left_W, right_W, _ = window_energies(audio_LC, window_samples=WINDOW_SAMPLES).T
    # d = (E_R - E_L) / (E_R + E_L)
    d_W = (right_W - left_W) / np.maximum(right_W + left_W, 1e-30)
    loud_W = np.sqrt((left_W + right_W) / 2) >= rms
    return loud_W & (d_W <= -bias), loud_W & (d_W >= bias)


def bias_windows(audio_LC: np.ndarray, truth_LC: np.ndarray) -> BiasWindows:
    """Cuts one clip into whole windows of 1 s; a sound that ends early is silent from there on.

    Args:
        audio_LC: sound under test, full scale 1, [L, 2].
        truth_LC: ground truth [L, 2]; RMS is taken over both channels.
    """
    missing = max(0, len(truth_LC) - len(audio_LC))
    audio_LC = np.pad(audio_LC[: len(truth_LC)], ((0, missing), (0, 0)))
    return BiasWindows(
        *_sides(truth_LC, bias=ELIGIBLE_BIAS, rms=ELIGIBLE_RMS),
        *_sides(audio_LC, bias=HEARD_BIAS, rms=HEARD_RMS),
    )


def bias_sums(windows: BiasWindows) -> np.ndarray:
    """Sums [eligible, left, left and said so, right, right and said so] of one clip."""
    left_W, right_W = windows.truth_left_W, windows.truth_right_W
    hits = (left_W & windows.said_left_W).sum(), (right_W & windows.said_right_W).sum()
    num_left, num_right = left_W.sum(), right_W.sum()
    return np.array([num_left + num_right, num_left, hits[0], num_right, hits[1]], dtype=np.float64)


def balanced_accuracy(sums_RS: np.ndarray) -> np.ndarray:
    """A_bal, the mean of left and right recall, from rows of `bias_sums`; NaN without a side."""
    _, left, left_hits, right, right_hits = np.asarray(sums_RS, dtype=np.float64).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (left_hits / left + right_hits / right) / 2


def bias_skill_given(null: float) -> Combine:
    """Combines rows of `bias_sums` to BiasSkill with mu_null held fixed, for the bootstrap.

    score = (A_bal - mu_null) / (1 - mu_null); NaN when mu_null is 1 (nothing left to win).
    """

    def combine(sums_RS: np.ndarray) -> np.ndarray:
        if not null < 1.0:
            return np.full(len(sums_RS), np.nan)
        return (balanced_accuracy(sums_RS) - null) / (1.0 - null)

    return combine


def derangements(count: int, *, num: int, generator: np.random.Generator) -> np.ndarray:
    """Uniform random permutations without fixed points, [num, count]; `count` >= 2.

    Draws permutations and keeps those without a fixed point, which are about one in e.
    """
    if count < 2:
        raise ValueError(f"{count} clips cannot be deranged; give at least two")
    kept, missing = [], num
    while missing > 0:
        tries = min(3 * missing + 16, BLOCK_NUMBERS // count + 1)
        drawn_RN = generator.permuted(np.tile(np.arange(count), (tries, 1)), axis=1)
        kept.append(drawn_RN[(drawn_RN != np.arange(count)).all(axis=1)][:missing])
        missing -= len(kept[-1])
    return np.concatenate(kept)


def bias_null(
    clips: Sequence[BiasWindows], *, seed: int = 0, num_derangements: int = NUM_DERANGEMENTS
) -> float:
    """mu_null: mean A_bal when each clip is judged by another clip's sound; NaN if undefined.

    Hits of every pair of clips are counted once, as products of window masks, so a derangement
    only adds up N entries. Where the other clip is shorter, its missing windows are silent. As
    every other clip is drawn equally often, the mean tends to that of all pairs of two clips.
    """
    if len(clips) < 2:
        return float("nan")
    masks = {
        name: _stacked([getattr(clip, name) for clip in clips])
        for name in ("truth_left_W", "truth_right_W", "said_left_W", "said_right_W")
    }
    pairs = [masks[f"truth_{side}_W"] @ masks[f"said_{side}_W"].T for side in ("left", "right")]
    counts = [masks[f"truth_{side}_W"].sum() for side in ("left", "right")]
    if min(counts) == 0:
        return float("nan")
    generator = np.random.default_rng(seed)
    order_RN = derangements(len(clips), num=num_derangements, generator=generator)
    rows_N = np.arange(len(clips))
    recall = [
        hits_NN[rows_N, order_RN].sum() / num_derangements / count
        for hits_NN, count in zip(pairs, counts, strict=True)
    ]
    return float(sum(recall) / 2)


def _stacked(masks: list[np.ndarray]) -> np.ndarray:
    """Masks of unequal length as rows [N, W], False past their ends."""
    stacked_NW = np.zeros((len(masks), max(len(mask) for mask in masks)))
    for row, mask in zip(stacked_NW, masks, strict=True):
        row[: len(mask)] = mask
    return stacked_NW
