"""Scores the rows of a table: clips against the truth, footage against mirror, picture, original.

Legend: L samples, C audio channels, W windows of 0.2 s, N records, S sums, E energies.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from spatial_v2a.audio.onsets import onset_times_s
from spatial_v2a.audio.stereo import (
    SIDED_DB,
    SILENT_DBFS,
    level_dbfs,
    level_difference_db,
    sound_level_dbfs,
    tick_energies,
    window_energies,
)
from spatial_v2a.inference.evaluation import (
    av_align,
    bias_skill,
    frechet,
    literature,
    metrics,
    trajectory,
)
from spatial_v2a.inference.evaluation.figures import (
    ECCENTRICITY_DEG,
    FIGURES,
    FOOTAGE_FIGURES,
    LITERATURE,
    TIME,
    FigureSpec,
)
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.originals import FootageRecord
from spatial_v2a.inference.evaluation.rows import ClipRecord, Record, Row
from spatial_v2a.inference.evaluation.several import several_sums
from spatial_v2a.inference.evaluation.store import fitted
from spatial_v2a.models.classifier import SoundClassifier, clip_logits
from spatial_v2a.processes import end_with_parent
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS, WINDOW_SAMPLES, WindowTruth, class_window_starts

CLASS_HOP_SAMPLES = TIMING.sample_rate_hz // 2

Sums = dict[str, np.ndarray]


@dataclass
class RowScore:
    """Figures of one row, and the sums of every record behind them."""

    row: Row
    figures: dict[str, Figure]
    sums: Sums = field(repr=False)
    named: dict[str, str] = field(default_factory=dict)


class Scorer(Protocol):
    """What every row is scored with; it can be sent to another process."""

    def score(self, row: Row) -> RowScore:
        """All figures of one row."""


def pooled(
    per_record: Sequence[Sums],
    specs: Mapping[str, FigureSpec],
    *,
    windows: Sequence[bias_skill.BiasWindows] = (),
    seed: int,
) -> tuple[dict[str, Figure], Sums]:
    """Figures over all records, and the sums of each [N, S]; zeros where a record has none.

    Args:
        per_record: sums by name.
        specs: the figures wanted.
        windows: of the records that count for BiasSkill.
        seed: of the bootstrap and of BiasSkill's derangements.
    """
    figures, stacked = {}, {}
    for name, spec in specs.items():
        stacked[name] = np.array([s.get(name, np.zeros(spec.num_sums)) for s in per_record])
        combine = spec.combine
        if name == "bias_skill":
            combine = bias_skill.bias_skill_given(bias_skill.bias_null(windows, seed=seed))
        figures[name] = metrics.bootstrap_figure(stacked[name], combine, seed=seed)
    return figures, stacked


@dataclass
class ClipScorer:
    """Scores clips with known positions by our figures and by the literature's.

    Attributes:
        records: the clips.
        ground_truth: the row that says where and how loud the sound should be.
        classifier: names the class of a sound, None to leave that column empty.
        seed: of the bootstrap.
    """

    records: Sequence[ClipRecord]
    ground_truth: Row
    classifier: SoundClassifier | None = None
    seed: int = 0
    # What belongs to the ground truth is measured once.
    _truth_onsets: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    _truth_embeddings: dict[str, Sums] = field(default_factory=dict, init=False)

    def score(self, row: Row) -> RowScore:
        """Every figure of FIGURES, TIME and LITERATURE (see figures.py) for one row.

        Where no clip has a source of its own, as in clips of several each, the last two are NaN.
        """
        score = score_row(
            row,
            self.records,
            ground_truth=self.ground_truth,
            classifier=self.classifier,
            seed=self.seed,
        )
        score.figures.update(self._literature(row))
        return score

    def _literature(self, row: Row) -> dict[str, Figure]:
        records = [record for record in self.records if record.windows.audible_W.any()]
        if not records:
            nothing = Figure(float("nan"), float("nan"), float("nan"), 0)
            return dict.fromkeys((*LITERATURE, *TIME), nothing)
        sums, windows, embedded = [], [], []
        for record in records:
            truth_LC = self.ground_truth.render(record)
            audio_LC = fitted(row.render(record), len(truth_LC))
            if record.key not in self._truth_onsets:
                self._truth_onsets[record.key] = onset_times_s(truth_LC)
                self._truth_embeddings[record.key] = frechet.embeddings(truth_LC)
            windows.append(bias_skill.bias_windows(audio_LC, truth_LC))
            embedded.append(frechet.embeddings(audio_LC))
            found_s, truth_s = onset_times_s(audio_LC), self._truth_onsets[record.key]
            sums.append(
                {
                    f"onset_f1_{ms}_ms": literature.onset_f1_sums(found_s, truth_s, tolerance_ms=ms)
                    for ms in literature.TOLERANCES_MS
                }
                | {"onset_error_ms": literature.onset_error_sums(found_s, truth_s)}
                | {"gcc_mse": literature.gcc_sums(audio_LC, truth_LC)}
                | {"envelope_l1": literature.envelope_l1_sums(audio_LC, truth_LC)}
                | {"bias_skill": bias_skill.bias_sums(windows[-1])}
                | picture_sums(audio_LC, record, onsets_s_N=found_s)
            )
        specs = {n: spec for n, spec in {**TIME, **LITERATURE}.items() if n in sums[0]}
        figures, _ = pooled(sums, specs, windows=windows, seed=self.seed)
        truth = [self._truth_embeddings[record.key] for record in records]
        return figures | {
            f"frechet_{name}": frechet.frechet_figure(
                [of_clip[name] for of_clip in embedded], [of_clip[name] for of_clip in truth]
            )
            for name in truth[0]
        }


@dataclass
class FootageScorer:
    """Scores footage where nobody knows the positions; one item's sounds at a time are in memory.

    Attributes:
        records: the items.
        original: row of the original tracks, None when no item has one.
        seed: of the bootstrap over items and of BiasSkill's derangements.
    """

    records: Sequence[FootageRecord]
    original: Row | None
    seed: int = 0

    def score(self, row: Row) -> RowScore:
        """Every figure of FOOTAGE_FIGURES for one row."""
        sums, windows = [], []
        for record in self.records:
            audio_LC = row.render(record)
            truth_LC = self.original.render(record) if self.original else None
            mirrored_LC = row.render_mirrored(record) if row.render_mirrored else None
            found: Sums = {}
            if audio_LC is not None:
                found = picture_sums(audio_LC, record, onsets_s_N=onset_times_s(audio_LC))
                seen_T = record.picture.box_side_T
                found["audible_in_view"] = literature.audible_sums(audio_LC, seen_T)
                found |= stereo_sums(audio_LC)
            if mirrored_LC is not None:
                found |= clip_mirror_sums(audio_LC, mirrored_LC)
            if audio_LC is not None and truth_LC is not None:
                found["envelope_l1"] = literature.envelope_l1_sums(audio_LC, truth_LC)
                if record.original.has_sides:
                    windows.append(bias_skill.bias_windows(audio_LC, truth_LC))
                    found["bias_skill"] = bias_skill.bias_sums(windows[-1])
            sums.append(found)
        return RowScore(row, *pooled(sums, FOOTAGE_FIGURES, windows=windows, seed=self.seed))


def score_table(
    table: list[Row], scorer: Scorer, *, num_jobs: int, progress: Callable[[str], None]
) -> list[RowScore]:
    """Scores the rows, in order.

    Args:
        table: the rows.
        scorer: what they are scored with.
        num_jobs: processes at once; the figures do not depend on it.
        progress: receives one line per row.
    """
    scores = []

    def add(score: RowScore) -> None:
        scores.append(score)
        progress(f"scored {score.row.name}: row {len(scores)}/{len(table)}")

    if num_jobs == 1:
        for row in table:
            add(scorer.score(row))
        return scores
    with ProcessPoolExecutor(
        num_jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(scorer,),
    ) as pool:
        for score in pool.map(_score, table):
            add(score)
    return scores


# One per process of the pool.
_worker: dict[str, Scorer] = {}


def _start_worker(scorer: Scorer) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker["scorer"] = scorer


def _score(row: Row) -> RowScore:
    return _worker["scorer"].score(row)


def score_row(
    row: Row,
    records: Sequence[ClipRecord],
    *,
    ground_truth: Row,
    classifier: SoundClassifier | None = None,
    seed: int = 0,
) -> RowScore:
    """Scores one row by our own figures; the ground truth says where and how loud it should be."""
    per_clip, named = [], {}
    for record in records:
        audio_LC, truth_LC = row.render(record), ground_truth.render(record)
        sums = clip_sums(audio_LC, truth_LC, record)
        if classifier is not None and row.names_class and record.truth.class_name:
            guess = named_class(audio_LC, truth_LC, record, classifier)
            if guess is not None:
                named[record.key] = guess
                sums["class_accuracy"] = np.array([1.0, guess == record.truth.class_name])
        per_clip.append(sums)
    return RowScore(row, *pooled(per_clip, FIGURES, seed=seed), named)


def clip_sums(audio_LC: np.ndarray, truth_LC: np.ndarray, record: ClipRecord) -> Sums:
    """Sums of every figure for one clip (the class apart).

    A sound shorter than the truth is filled with silence.
    """
    audio_LC = np.pad(audio_LC, ((0, max(0, len(truth_LC) - len(audio_LC))), (0, 0)))
    truth = record.windows
    energies_WE = window_energies(audio_LC, window_samples=WINDOW_SAMPLES)
    energies_WE = energies_WE[: len(truth.azimuth_W)]
    difference_W, audible_W = level_difference_db(energies_WE), _audible(energies_WE)
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
    sums |= trajectory.curve_sums(audio_LC, truth_LC, record.truth)
    sums |= place_sums(difference_W, audible_W, truth)
    if record.load_stems is not None:
        sums |= several_sums(audio_LC, record.load_stems(), record.azimuths_NT)
    if truth.audible_W.any():
        gap_db = sound_level_dbfs(audio_LC[: len(truth_LC)]) - sound_level_dbfs(truth_LC)
        sums["level_against_truth_db"] = np.array([1.0, gap_db])
    return sums


def place_sums(difference_W: np.ndarray, audible_W: np.ndarray, truth: WindowTruth) -> Sums:
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
    audio_LC: np.ndarray, truth_LC: np.ndarray, record: ClipRecord, classifier: SoundClassifier
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
    sounding = [s for s in fits if sound_level_dbfs(audio_LC[s : s + length]) >= AUDIBLE_DBFS - 10]
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


def mirror_figures(original: Row, mirrored: Row, records: Sequence[Record]) -> dict[str, Figure]:
    """Mirror test: the flipped picture's pan against the turned pan of the original.

    Windows count where both sounds are audible; no ground truth is needed.
    """
    sums = [clip_mirror_sums(original.render(r), mirrored.render(r)) for r in records]
    specs = {name: FOOTAGE_FIGURES[name] for name in ("mirror_correlation", "mirror_swapped")}
    return pooled(sums, specs, seed=0)[0]


def clip_mirror_sums(audio_LC: np.ndarray, mirrored_LC: np.ndarray) -> Sums:
    """Mirror test of one clip: the pan against the turned pan of the mirrored picture's sound.

    Windows count where both sounds are audible.
    """
    first_WE, second_WE = (
        window_energies(sound_LC, window_samples=WINDOW_SAMPLES)
        for sound_LC in (audio_LC, mirrored_LC)
    )
    audible_W = _audible(first_WE) & _audible(second_WE)
    first_W, second_W = (level_difference_db(x[audible_W]) for x in (first_WE, second_WE))
    return {
        "mirror_correlation": metrics.moments(first_W, -second_W),
        "mirror_swapped": metrics.mirror_sums(first_W, second_W),
    }


def stereo_sums(audio_LC: np.ndarray) -> Sums:
    """How stereo one sound is: mid and side power, and where its audible windows lie.

    The figures of `spatial-v2a inspect`, in windows of 0.2 s.
    """
    energies_WE = tick_energies(audio_LC, samples_per_tick=WINDOW_SAMPLES)
    audible_W = level_dbfs(energies_WE) > SILENT_DBFS
    if not audible_W.any():
        return {}
    difference_W = level_difference_db(energies_WE)[audible_W]
    left, right, cross = energies_WE.sum(axis=0)
    mid, side = (left + right + 2 * cross) / 4, max(0.0, left + right - 2 * cross) / 4
    is_left_W, is_right_W = difference_W >= SIDED_DB, difference_W <= -SIDED_DB
    count = len(difference_W)
    return {
        "side_over_mid_db": np.array([len(energies_WE), mid, side]),
        "left": np.array([count, is_left_W.sum()], dtype=np.float64),
        "centre": np.array([count, (~is_left_W & ~is_right_W).sum()], dtype=np.float64),
        "right": np.array([count, is_right_W.sum()], dtype=np.float64),
    }


def picture_sums(audio_LC: np.ndarray, record: Record, *, onsets_s_N: np.ndarray) -> Sums:
    """AV-Align, Spatial AV-Align and HelixBench Spatial of one sound."""
    picture = record.picture
    columns_px_S = av_align.sound_columns_px(audio_LC, fov_deg=picture.fov_deg)
    return {
        "av_align": av_align.av_align_sums(
            onsets_s_N, picture.motion_peaks_s, frame_hz=min(picture.picture_hz, TIMING.tick_hz)
        ),
        "spatial_av_align": av_align.spatial_av_align_sums(columns_px_S, picture.edges_px_D),
        "helix_spatial": literature.helix_sums(audio_LC, picture.box_side_T),
    }


def _audible(energies_WE: np.ndarray) -> np.ndarray:
    return level_dbfs(energies_WE) >= AUDIBLE_DBFS
