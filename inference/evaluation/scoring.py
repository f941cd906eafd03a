"""Scores the rows of the table against the truth, window by window.

Legend: L samples, W windows, N clips.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from spatial_v2a.classifier import SoundClassifier, clip_logits
from spatial_v2a.inference.evaluation import metrics
from spatial_v2a.inference.evaluation.metrics import Combine, Figure
from spatial_v2a.inference.evaluation.rows import Record, Row
from spatial_v2a.panning import level_difference_db, window_level_dbfs
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS, WINDOW_SAMPLES, class_window_starts

CLASS_HOP_SAMPLES = TIMING.sample_rate_hz // 2

# Name of each figure, and how its sums combine.
FIGURES: dict[str, Combine] = {
    "pan_correlation": metrics.correlation,
    "pan_correlation_per_clip": metrics.ratio,
    "sign_accuracy": metrics.ratio,
    "azimuth_error_deg": metrics.ratio,
    "azimuth_slope": metrics.slope,
    "just_left_sign_accuracy": metrics.ratio,
    "level_against_truth_db": metrics.ratio,
    "class_accuracy": metrics.ratio,
}
NUM_SUMS = {metrics.correlation: 6, metrics.slope: 6, metrics.ratio: 2}


@dataclass
class RowScore:
    """Figures of one row, and the per-clip sums behind them."""

    row: Row
    figures: dict[str, Figure]
    sums: dict[str, np.ndarray] = field(repr=False)
    named: dict[str, str] = field(default_factory=dict)


def score_row(
    row: Row,
    records: list[Record],
    *,
    ground_truth: Row,
    classifier: SoundClassifier | None,
    seed: int = 0,
) -> RowScore:
    """Scores one row on all clips; the ground truth says where and how loud it should be."""
    per_clip: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    named = {}
    for record in records:
        audio_LC, truth_LC = row.render(record), ground_truth.render(record)
        sums = clip_sums(audio_LC, truth_LC, record)
        if classifier is not None and row.names_class and record.truth.class_name:
            guess = named_class(audio_LC, truth_LC, record, classifier)
            if guess is not None:
                named[record.truth.key] = guess
                sums["class_accuracy"] = np.array([1.0, guess == record.truth.class_name])
        for name, combine in FIGURES.items():
            per_clip[name].append(sums.get(name, np.zeros(NUM_SUMS[combine])))
    stacked = {name: np.array(rows) for name, rows in per_clip.items()}
    figures = {
        name: metrics.bootstrap_figure(stacked[name], combine, seed=seed)
        for name, combine in FIGURES.items()
    }
    return RowScore(row, figures, stacked, named)


def clip_sums(audio_LC: np.ndarray, truth_LC: np.ndarray, record: Record) -> dict[str, np.ndarray]:
    """Sums of every figure for one clip (the class apart).

    A sound shorter than the truth (another clip's, in the shuffled row) is filled with silence.
    """
    audio_LC = np.pad(audio_LC, ((0, max(0, len(truth_LC) - len(audio_LC))), (0, 0)))
    truth = record.windows
    count = len(truth.azimuth_W)
    difference_W = level_difference_db(audio_LC, window_samples=WINDOW_SAMPLES)[:count]
    audible_W = window_level_dbfs(audio_LC, window_samples=WINDOW_SAMPLES)[:count] >= AUDIBLE_DBFS
    seen, left = truth.on_screen_W, truth.left_W
    azimuth_W, pan_W = truth.azimuth_W[seen], difference_W[seen]
    moments = metrics.moments(azimuth_W, pan_W)
    sums = {
        "pan_correlation": moments,
        "pan_correlation_per_clip": metrics.clip_correlation_sums(pan_W, azimuth_W),
        "sign_accuracy": metrics.sign_sums(pan_W, azimuth_W),
        "azimuth_error_deg": metrics.azimuth_error_sums(pan_W, azimuth_W, audible_W[seen]),
        "azimuth_slope": metrics.moments(azimuth_W, metrics.law_azimuth_deg(pan_W)),
        "just_left_sign_accuracy": metrics.sign_sums(difference_W[left], truth.azimuth_W[left]),
    }
    if truth.audible_W.any():
        gap_db = metrics.level_dbfs(audio_LC[: len(truth_LC)]) - metrics.level_dbfs(truth_LC)
        sums["level_against_truth_db"] = np.array([1.0, gap_db])
    return sums


def named_class(
    audio_LC: np.ndarray, truth_LC: np.ndarray, record: Record, classifier: SoundClassifier
) -> str | None:
    """The class the classifier hears where the ground truth is audible; "silence" if none sounds.

    Returns:
        None when the clip has no window to judge by.
    """
    length = classifier.config.window_samples
    starts = class_window_starts(
        record.truth, truth_LC, window_samples=length, hop_samples=CLASS_HOP_SAMPLES
    )
    if not starts:
        return None
    fits = [s for s in starts if s + length <= len(audio_LC)]
    sounding = [
        s for s in fits if metrics.level_dbfs(audio_LC[s : s + length]) >= AUDIBLE_DBFS - 10
    ]
    if len(sounding) * 2 < len(starts):
        return "silence"
    logits = clip_logits(classifier, torch.from_numpy(audio_LC.T.copy()), starts=sounding)
    return classifier.config.class_names[int(logits.argmax())]


def skill(score: RowScore, mono: RowScore) -> Figure:
    """1 - azimuth error / azimuth error of the mono row, with its interval over clips."""
    both_N4 = np.concatenate(
        [score.sums["azimuth_error_deg"], mono.sums["azimuth_error_deg"]], axis=1
    )

    def combine(sums_RS: np.ndarray) -> np.ndarray:
        return 1.0 - metrics.ratio(sums_RS[:, :2]) / metrics.ratio(sums_RS[:, 2:])

    return metrics.bootstrap_figure(both_N4, combine)


def mirror_figures(original: Row, mirrored: Row, records: list[Record]) -> dict[str, Figure]:
    """Mirror test: the flipped picture's pan against the turned pan of the original.

    Windows count where both sounds are audible; no ground truth is needed.
    """
    moments, swaps = [], []
    for record in records:
        first_LC, second_LC = original.render(record), mirrored.render(record)
        audible_W = np.ones(len(first_LC) // WINDOW_SAMPLES, dtype=bool)
        for audio_LC in (first_LC, second_LC):
            audible_W &= window_level_dbfs(audio_LC, window_samples=WINDOW_SAMPLES) >= AUDIBLE_DBFS
        first_W, second_W = (
            level_difference_db(audio_LC, window_samples=WINDOW_SAMPLES)[audible_W]
            for audio_LC in (first_LC, second_LC)
        )
        moments.append(metrics.moments(first_W, -second_W))
        swaps.append(metrics.mirror_sums(first_W, second_W))
    return {
        "mirror_correlation": metrics.bootstrap_figure(np.array(moments), metrics.correlation),
        "mirror_swapped": metrics.bootstrap_figure(np.array(swaps), metrics.ratio),
    }
