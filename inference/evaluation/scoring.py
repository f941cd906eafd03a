"""Scores the rows of the table against the truth, window by window.

Legend: L samples, W windows, N clips.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from spatial_v2a.audio.panning import level_difference_db, window_level_dbfs
from spatial_v2a.inference.evaluation import metrics, trajectory
from spatial_v2a.inference.evaluation.figures import ECCENTRICITY_DEG, FIGURES
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.rows import Record, Row
from spatial_v2a.inference.evaluation.several import several_sums
from spatial_v2a.models.classifier import SoundClassifier, clip_logits
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS, WINDOW_SAMPLES, WindowTruth, class_window_starts

CLASS_HOP_SAMPLES = TIMING.sample_rate_hz // 2


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
        for name, spec in FIGURES.items():
            per_clip[name].append(sums.get(name, np.zeros(spec.num_sums)))
    stacked = {name: np.array(rows) for name, rows in per_clip.items()}
    figures = {
        name: metrics.bootstrap_figure(stacked[name], spec.combine, seed=seed)
        for name, spec in FIGURES.items()
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
    sums |= curve_sums(audio_LC, truth_LC, record)
    sums |= place_sums(difference_W, audible_W, truth)
    if record.load_stems is not None:
        sums |= several_sums(audio_LC, record.load_stems(), record.azimuths_NT)
    if truth.audible_W.any():
        gap_db = metrics.level_dbfs(audio_LC[: len(truth_LC)]) - metrics.level_dbfs(truth_LC)
        sums["level_against_truth_db"] = np.array([1.0, gap_db])
    return sums


def curve_sums(audio_LC: np.ndarray, truth_LC: np.ndarray, record: Record) -> dict[str, np.ndarray]:
    """Sums of the figures over time and of distance for one clip."""
    sound, truth_sound = (
        trajectory.sound_curve(x, num_ticks=record.truth.num_ticks) for x in (audio_LC, truth_LC)
    )
    true_T = trajectory.true_curve_deg(record.truth, truth_sound)
    return {
        "trajectory_rmse_deg": trajectory.squared_error_sums(sound, true_T),
        "azimuth_bias_deg": trajectory.bias_sums(sound, true_T),
        "movement_direction": trajectory.direction_sums(sound, true_T),
        "lag_ms": trajectory.lag_sums(sound, true_T),
        "db_per_doubling": trajectory.distance_sums(sound, record.truth, truth_sound),
        "level_distance_spearman": trajectory.rank_sums(sound, record.truth, truth_sound),
    }


def place_sums(
    difference_W: np.ndarray, audible_W: np.ndarray, truth: WindowTruth
) -> dict[str, np.ndarray]:
    """Sums of the azimuth error by where the source is, for one clip.

    Out of the picture the engine pans a source behind like one in front: so is it compared.
    """

    def error(picked_W: np.ndarray, azimuth_W: np.ndarray) -> np.ndarray:
        return metrics.azimuth_error_sums(
            difference_W[picked_W], azimuth_W[picked_W], audible_W[picked_W]
        )

    seen_W, off_W = truth.on_screen_W, truth.audible_W & ~truth.on_screen_W
    distance_W = np.abs(truth.azimuth_W)
    folded_W = np.sign(truth.azimuth_W) * np.minimum(distance_W, 180.0 - distance_W)
    sums = {
        f"azimuth_error_{low}_{high}_deg": error(
            seen_W & (distance_W >= low) & (distance_W < high), truth.azimuth_W
        )
        for low, high in ECCENTRICITY_DEG
    }
    sums["azimuth_error_off_screen_deg"] = error(off_W, folded_W)
    sums["azimuth_error_turning_deg"] = error(seen_W & truth.turning_W, truth.azimuth_W)
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
    sums = [clip_mirror_sums(original.render(r), mirrored.render(r)) for r in records]
    combines = {"mirror_correlation": metrics.correlation, "mirror_swapped": metrics.ratio}
    return {
        name: metrics.bootstrap_figure(np.array([clip[name] for clip in sums]), combine)
        for name, combine in combines.items()
    }


def clip_mirror_sums(audio_LC: np.ndarray, mirrored_LC: np.ndarray) -> dict[str, np.ndarray]:
    """Mirror test of one clip: the pan against the turned pan of the mirrored picture's sound.

    Windows count where both sounds are audible.
    """
    audible_W = np.ones(len(audio_LC) // WINDOW_SAMPLES, dtype=bool)
    for sound_LC in (audio_LC, mirrored_LC):
        audible_W &= window_level_dbfs(sound_LC, window_samples=WINDOW_SAMPLES) >= AUDIBLE_DBFS
    first_W, second_W = (
        level_difference_db(sound_LC, window_samples=WINDOW_SAMPLES)[audible_W]
        for sound_LC in (audio_LC, mirrored_LC)
    )
    return {
        "mirror_correlation": metrics.moments(first_W, -second_W),
        "mirror_swapped": metrics.mirror_sums(first_W, second_W),
    }
