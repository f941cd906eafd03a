"""The literature's figures for every row, beside ours, so that mono stands next to each of them.

Legend: N clips, L samples, T ticks, K boxes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spatial_v2a.clip import Clip
from spatial_v2a.inference.evaluation import (
    av_align,
    bias_skill,
    embedding,
    frechet,
    helix_bench,
    literature,
    metrics,
    onsets,
)
from spatial_v2a.inference.evaluation.figures import LITERATURE, TIME
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.rows import Record, Row
from spatial_v2a.inference.evaluation.store import fitted

# Pictures are halved until they are at most this wide before their motion is measured.
MOTION_WIDTH = 200


@dataclass(frozen=True)
class Picture:
    """What the figures of sound and picture need to know of one clip.

    Attributes:
        edges_px_D: left and right edge of every box in px of 256, [K, 2] per detection frame.
        motion_peaks_s: times at which the motion of the picture peaks.
        fov_deg: horizontal field of view.
        seen_T: `helix_sums`' place of the largest box per tick; NaN without a box.
    """

    edges_px_D: list[np.ndarray]
    motion_peaks_s: np.ndarray
    fov_deg: float
    seen_T: np.ndarray


def motion_peaks_s(clip: Clip) -> list[float]:
    """Times at which the picture's motion peaks (AV-Align), from halved pictures: 1 s a clip."""
    step = 1
    while clip.frame(0).shape[1] > MOTION_WIDTH * step:
        step *= 2
    flow_T = av_align.mean_flow_px(np.ascontiguousarray(f[::step, ::step]) for f in clip.frames())
    return [round(float(time_s), 6) for time_s in av_align.motion_peaks_s(flow_T)]


def box_edges_px(meta: dict[str, Any]) -> list[np.ndarray]:
    """Edges of the engine's boxes in px of 256, [K, 2] per detection frame."""
    edges_T = [
        np.array([[box["x"], box["x"] + box["w"]] for box in tick["boxes"]]).reshape(-1, 2)
        * av_align.PICTURE_WIDTH_PX
        for tick in meta["ticks"]
    ]
    return av_align.detection_frames(edges_T)


def largest_box_side(meta: dict[str, Any]) -> np.ndarray:
    """2 x / W - 1 of the middle of the engine's largest box per tick; NaN without a box."""
    largest_T = [
        max(tick["boxes"], key=lambda box: box["w"] * box["h"], default=None)
        for tick in meta["ticks"]
    ]
    return np.array([np.nan if b is None else 2 * b["x"] + b["w"] - 1 for b in largest_T])


class LiteratureScorer:
    """Scores rows by the literature's figures; what belongs to the ground truth is made once."""

    def __init__(
        self, records: list[Record], pictures: list[Picture], *, ground_truth: Row, seed: int = 0
    ) -> None:
        self.records = [record for record in records if record.windows.audible_W.any()]
        self.pictures = [pictures[record.number] for record in self.records]
        self.truth, self.seed = ground_truth, seed
        self._truth_onsets: list[np.ndarray] = []
        self._truth_embeddings: dict[str, list[np.ndarray]] = {}

    def figures(self, row: Row) -> dict[str, Figure]:
        """Every figure of LITERATURE and TIME (see figures.py) for one row.

        Where no clip has a source of its own, as in clips of several each, all are NaN.
        """
        if not self.records:
            nothing = Figure(float("nan"), float("nan"), float("nan"), 0)
            return dict.fromkeys((*LITERATURE, *TIME), nothing)
        per_clip: dict[str, list[np.ndarray]] = {}
        windows, embedded = [], {name: [] for name in (*embedding.VIEWS, "stereo")}
        is_first = not self._truth_onsets
        for number, (record, picture) in enumerate(zip(self.records, self.pictures, strict=True)):
            truth_LC = self.truth.render(record)
            audio_LC = fitted(row.render(record), len(truth_LC))
            if is_first:
                self._truth_onsets.append(onsets.onset_times_s(truth_LC))
                for name, values in _embeddings(truth_LC).items():
                    self._truth_embeddings.setdefault(name, []).append(values)
            found_s, truth_s = onsets.onset_times_s(audio_LC), self._truth_onsets[number]
            sums = {
                f"onset_f1_{ms}_ms": onsets.onset_f1_sums(found_s, truth_s, tolerance_ms=ms)
                for ms in onsets.TOLERANCES_MS
            }
            sums["onset_error_ms"] = onsets.onset_error_sums(found_s, truth_s)
            sums["envelope_l1"] = literature.envelope_l1_sums(audio_LC, truth_LC)
            sums["gcc_mse"] = literature.gcc_sums(audio_LC, truth_LC)
            sums["av_align"] = av_align.av_align_sums(found_s, picture.motion_peaks_s)
            columns_px_S = av_align.sound_columns_px(audio_LC, fov_deg=picture.fov_deg)
            sums["spatial_av_align"] = av_align.spatial_av_align_sums(
                columns_px_S, picture.edges_px_D
            )
            sums["helix_spatial"] = helix_bench.helix_sums(audio_LC, picture.seen_T)
            windows.append(bias_skill.bias_windows(audio_LC, truth_LC))
            sums["bias_skill"] = bias_skill.bias_sums(windows[-1])
            for name, value in sums.items():
                per_clip.setdefault(name, []).append(value)
            for name, values in _embeddings(audio_LC).items():
                embedded[name].append(values)
        return {**self._pooled(per_clip, windows), **self._distances(embedded)}

    def _pooled(
        self, per_clip: dict[str, list[np.ndarray]], windows: list[bias_skill.BiasWindows]
    ) -> dict[str, Figure]:
        null = bias_skill.bias_null(windows, seed=self.seed)
        combines = {
            "bias_skill": bias_skill.bias_skill_given(null),
            "onset_error_ms": onsets.median_error_ms,
        }
        pooled = partial(metrics.bootstrap_figure, seed=self.seed)
        return {
            name: pooled(np.array(sums), combines.get(name, metrics.ratio))
            for name, sums in per_clip.items()
        }

    def _distances(self, embedded: dict[str, list[np.ndarray]]) -> dict[str, Figure]:
        return {
            f"frechet_{name}": frechet.frechet_figure(values, self._truth_embeddings[name])
            for name, values in embedded.items()
        }


def _embeddings(audio_LC: np.ndarray) -> dict[str, np.ndarray]:
    """Timbre of left, right, mid and side, and the stereo embedding, [windows, width] each."""
    timbre = {
        name: embedding.timbre_embedding(embedding.view(audio_LC, name)) for name in embedding.VIEWS
    }
    return {**timbre, "stereo": embedding.stereo_embedding(audio_LC)}
