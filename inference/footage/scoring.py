"""Scores sounds of footage where nobody knows the positions: against mirror, picture and original.

Legend: L samples, C audio channels, W windows of 0.2 s, N items, S sums, E energies.
"""

from dataclasses import dataclass, field

import numpy as np

from spatial_v2a.audio.stereo import SIDED_DB, SILENT_DBFS, tick_energies
from spatial_v2a.audio.stereo import level_dbfs as energy_level_dbfs
from spatial_v2a.audio.stereo import level_difference_db as energy_difference_db
from spatial_v2a.inference.evaluation import (
    av_align,
    bias_skill,
    helix_bench,
    literature,
    metrics,
)
from spatial_v2a.inference.evaluation.figures import FigureSpec, mean, share
from spatial_v2a.inference.evaluation.metrics import Figure
from spatial_v2a.inference.evaluation.scoring import clip_mirror_sums
from spatial_v2a.inference.footage import long_sounds
from spatial_v2a.inference.footage.rows import FootageRecord, FootageRow
from spatial_v2a.inference.inspect.measure import DUAL_MONO_DB
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import WINDOW_SAMPLES


def side_over_mid_db(sums_RS: np.ndarray) -> np.ndarray:
    """Side over mid in dB from sums [windows, mid power, side power]; NaN in silence.

    Kept within +-60 dB: a side DUAL_MONO_DB below the mid is as good as none.
    """
    _, mid, side = sums_RS.T
    with np.errstate(invalid="ignore", divide="ignore"):
        value_db = 10 * np.log10(side / mid)
    return np.clip(value_db, DUAL_MONO_DB, -DUAL_MONO_DB)


LEFT_RIGHT = {
    "mirror_correlation": FigureSpec("mirror correlation", metrics.correlation, 6),
    "mirror_swapped": share("mirror swaps %"),
    "side_over_mid_db": FigureSpec("side/mid dB", side_over_mid_db, 3, digits=1),
    "left": share("left %"),
    "centre": share("centre %"),
    "right": share("right %"),
}
AGAINST = {
    "helix_spatial": FigureSpec("HelixBench Spatial", metrics.ratio, digits=1),
    "audible_in_view": share("audible in view %"),
    "bias_skill": mean("BiasSkill"),
    "envelope_l1": FigureSpec("E-L1", metrics.ratio, digits=4),
    "av_align": mean("AV-Align"),
    "spatial_av_align": mean("Spatial AV-Align"),
}
FOOTAGE_TABLES = {
    "Left and right": LEFT_RIGHT,
    "Against the original track, and the picture": AGAINST,
}
NUM_SUMS = {
    name: spec.num_sums for table in FOOTAGE_TABLES.values() for name, spec in table.items()
}
NUM_SUMS["bias_skill"] = 5


@dataclass
class FootageScore:
    """Figures of one row, and the sums of every item behind them."""

    row: FootageRow
    figures: dict[str, Figure]
    sums: dict[str, np.ndarray] = field(repr=False)


def score_rows(
    table: list[FootageRow],
    records: list[FootageRecord],
    *,
    original: FootageRow | None,
    fov_deg: float,
    seed: int = 0,
) -> list[FootageScore]:
    """Scores every row; the sounds of one item at a time are in memory.

    Args:
        table: the rows.
        records: the items.
        original: row of the original tracks, None when no item has one.
        fov_deg: horizontal field of view of the pictures.
        seed: of the bootstrap over items and of BiasSkill's derangements.
    """
    sums = {row.name: {name: [] for name in NUM_SUMS} for row in table}
    windows: dict[str, list[bias_skill.BiasWindows]] = {row.name: [] for row in table}
    for record in records:
        truth_LC = original.render(record, False) if original else None
        for row in table:
            audio_LC, mirrored_LC = row.render(record, False), row.render(record, True)
            found = {}
            if audio_LC is not None:
                found = picture_sums(audio_LC, record, fov_deg=fov_deg) | stereo_sums(audio_LC)
                seen_T = record.largest_box_side_T(fov_deg=fov_deg)
                found["helix_spatial"] = helix_bench.helix_sums(audio_LC, seen_T)
                found["audible_in_view"] = helix_bench.audible_sums(audio_LC, seen_T)
                if mirrored_LC is not None:
                    found |= clip_mirror_sums(audio_LC, mirrored_LC)
                if truth_LC is not None:
                    found["envelope_l1"] = literature.envelope_l1_sums(audio_LC, truth_LC)
                if truth_LC is not None and record.original.has_sides:
                    windows[row.name].append(bias_skill.bias_windows(audio_LC, truth_LC))
                    found["bias_skill"] = bias_skill.bias_sums(windows[row.name][-1])
            for name, num_sums in NUM_SUMS.items():
                sums[row.name][name].append(found.get(name, np.zeros(num_sums)))
    return [
        _pooled(
            row,
            {name: np.array(rows_NS) for name, rows_NS in sums[row.name].items()},
            windows[row.name],
            seed=seed,
        )
        for row in table
    ]


def _pooled(
    row: FootageRow,
    sums: dict[str, np.ndarray],
    windows: list[bias_skill.BiasWindows],
    *,
    seed: int,
) -> FootageScore:
    combines = {
        name: spec.combine for table in FOOTAGE_TABLES.values() for name, spec in table.items()
    }
    null = bias_skill.bias_null(windows, seed=seed)
    combines["bias_skill"] = bias_skill.bias_skill_given(null)
    figures = {
        name: metrics.bootstrap_figure(sums_NS, combines[name], seed=seed)
        for name, sums_NS in sums.items()
    }
    return FootageScore(row, figures, sums)


def stereo_sums(audio_LC: np.ndarray) -> dict[str, np.ndarray]:
    """How stereo one sound is: mid and side power, and where its audible windows lie.

    The figures of `spatial-v2a inspect`, in windows of 0.2 s.
    """
    energies_WE = tick_energies(audio_LC, samples_per_tick=WINDOW_SAMPLES)
    audible_W = energy_level_dbfs(energies_WE) > SILENT_DBFS
    if not audible_W.any():
        return {}
    difference_W = energy_difference_db(energies_WE)[audible_W]
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


def picture_sums(
    audio_LC: np.ndarray, record: FootageRecord, *, fov_deg: float
) -> dict[str, np.ndarray]:
    """AV-Align and Spatial AV-Align of one sound of an item."""
    columns_px_S = av_align.sound_columns_px(audio_LC, fov_deg=fov_deg)
    return {
        "av_align": long_sounds.av_align_sums(
            long_sounds.onset_times_s(audio_LC),
            record.motion_peaks_s,
            frame_hz=min(float(record.item.picture_hz), TIMING.tick_hz),
        ),
        "spatial_av_align": av_align.spatial_av_align_sums(columns_px_S, record.edges_px_D),
    }
