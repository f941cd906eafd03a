"""The figures of the reports: how each combines from per-clip sums, and the table it stands in."""

from dataclasses import dataclass

import numpy as np

from spatial_v2a.inference.evaluation import literature, metrics, trajectory
from spatial_v2a.inference.evaluation.metrics import Combine
from spatial_v2a.inference.inspect.measure import DUAL_MONO_DB

# Bins of |bearing| in degrees for the error by eccentricity; beyond the last one is off screen.
ECCENTRICITY_DEG = ((0, 10), (10, 25), (25, 45))


@dataclass(frozen=True)
class FigureSpec:
    """One figure.

    Attributes:
        title: heading of its column.
        combine: maps summed rows [R, num_sums] to figures [R].
        num_sums: sums per clip.
        is_share: shown in per cent.
        digits: after the point, when it is no share.
    """

    title: str
    combine: Combine
    num_sums: int = 2
    is_share: bool = False
    digits: int = 2


def share(title: str) -> FigureSpec:
    """A share of windows or clips."""
    return FigureSpec(title, metrics.ratio, is_share=True)


def mean(title: str) -> FigureSpec:
    """A mean over windows or clips."""
    return FigureSpec(title, metrics.ratio)


def side_over_mid_db(sums_RS: np.ndarray) -> np.ndarray:
    """Side over mid in dB from sums [windows, mid power, side power]; NaN in silence.

    Kept within +-60 dB: a side DUAL_MONO_DB below the mid is as good as none.
    """
    _, mid, side = sums_RS.T
    with np.errstate(invalid="ignore", divide="ignore"):
        value_db = 10 * np.log10(side / mid)
    return np.clip(value_db, DUAL_MONO_DB, -DUAL_MONO_DB)


LEFT_RIGHT = {
    "pan_correlation": FigureSpec("pan correlation", metrics.correlation, 6),
    "sign_accuracy": share("right side %"),
    "azimuth_error_deg": mean("azimuth error deg"),
    "azimuth_slope": FigureSpec("slope", metrics.slope, 6),
    "just_left_sign_accuracy": share("right side after leaving %"),
    "level_against_truth_db": mean("level dB"),
    "class_accuracy": share("class right %"),
}
OVER_TIME = {
    "trajectory_rmse_deg": FigureSpec("RMSE deg", trajectory.root_mean),
    "azimuth_bias_deg": mean("bias deg, left +"),
    "movement_direction": share("movement right way %"),
    "lag_ms": FigureSpec("lag ms", trajectory.lag_ms, trajectory.NUM_LAG_SUMS),
    "pan_correlation_per_clip": mean("pan correlation within a clip"),
    "db_per_doubling": FigureSpec("dB per doubling of distance", metrics.slope, 6),
    "level_distance_spearman": mean("Spearman of level and distance"),
}
BY_PLACE = {
    **{
        f"azimuth_error_{low}_{high}_deg": mean(f"{low}-{high} deg")
        for low, high in ECCENTRICITY_DEG
    },
    "azimuth_error_off_screen_deg": mean("out of the picture"),
    "azimuth_error_turning_deg": mean("view turning"),
}
SEVERAL = {
    "source_azimuth_error_deg": mean("azimuth error per source deg"),
    "source_order": share("order of two right %"),
    "source_missed": share("missed %"),
    "source_invented": share("invented %"),
}
TIME = {
    "onset_f1_20_ms": share("onset F1 20 ms %"),
    "onset_f1_50_ms": share("50 ms %"),
    "onset_f1_100_ms": share("100 ms %"),
    "onset_error_ms": FigureSpec("median onset error ms", literature.median_error_ms),
}
# What combines its sums depends on all clips of a row (`scoring.pooled`).
BIAS_SKILL = FigureSpec("BiasSkill", metrics.ratio, 5)
LITERATURE = {
    "bias_skill": BIAS_SKILL,
    "helix_spatial": FigureSpec("HelixBench Spatial", metrics.ratio, digits=1),
    "spatial_av_align": mean("Spatial AV-Align"),
    "av_align": mean("AV-Align"),
    "envelope_l1": FigureSpec("E-L1", metrics.ratio, digits=4),
    "gcc_mse": mean("GCC MSE"),
    "frechet_left": mean("Frechet left"),
    "frechet_right": mean("right"),
    "frechet_mid": mean("mid"),
    "frechet_side": mean("side"),
    "frechet_stereo": mean("FSAD"),
}
TABLES = {
    "Left and right": LEFT_RIGHT,
    "Over time, and distance": OVER_TIME,
    "Azimuth error by place, deg": BY_PLACE,
    "Several sources": SEVERAL,
    "When": TIME,
    "The literature's figures": LITERATURE,
}
# Sums of every clip, whatever it holds; those of TIME and LITERATURE only where a source sounds.
FIGURES = LEFT_RIGHT | OVER_TIME | BY_PLACE | SEVERAL

FOOTAGE_TABLES = {
    "Left and right": {
        "mirror_correlation": FigureSpec("mirror correlation", metrics.correlation, 6),
        "mirror_swapped": share("mirror swaps %"),
        "side_over_mid_db": FigureSpec("side/mid dB", side_over_mid_db, 3, digits=1),
        "left": share("left %"),
        "centre": share("centre %"),
        "right": share("right %"),
    },
    "Against the original track, and the picture": {
        "helix_spatial": LITERATURE["helix_spatial"],
        "audible_in_view": share("audible in view %"),
        **{
            name: LITERATURE[name]
            for name in ("bias_skill", "envelope_l1", "av_align", "spatial_av_align")
        },
    },
}
FOOTAGE_FIGURES = {name: spec for table in FOOTAGE_TABLES.values() for name, spec in table.items()}
