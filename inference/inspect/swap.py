"""Does the sound move with the picture? Bearing of the largest box against the level difference.

Both are smooth curves, so neighbouring windows are no independent evidence. The null shifts one
curve against the other in a circle: it keeps how each moves and destroys what they share.
Legend: T ticks of the sound, P pictures, R shifts. Bearing and difference are POSITIVE TO THE LEFT.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.audio.stereo import SILENT_DBFS, level_dbfs, level_difference_db
from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation.metrics import correlation, sign_sums
from spatial_v2a.timing import TIMING, Timing

PICTURE_HZ = 5
FOLLOWS, SWAPPED = "follows the picture", "suspect: channels swapped"
UNKNOWN = "not enough evidence"

MIN_WINDOWS = 15
MAX_P_VALUE, MIN_CORRELATION = 0.05, 0.6
# Ten seconds cannot give a p below 1/32, so r must be plain there; a long file may show less.
STRICT_P_VALUE, STRICT_MIN_CORRELATION = 0.01, 0.3
# Shorter shifts resemble the unshifted pair; fewer than 1 / MAX_P_VALUE of them decide nothing.
MIN_SHIFT_WINDOWS = 2 * PICTURE_HZ
MIN_SHIFTS = 20
RULE = (
    f"at least {MIN_WINDOWS} windows; |r| >= {MIN_CORRELATION} and p <= {MAX_P_VALUE}, or |r| >="
    f" {STRICT_MIN_CORRELATION} and p <= {STRICT_P_VALUE}; p against all circular shifts of"
    f" {MIN_SHIFT_WINDOWS / PICTURE_HZ:g} s or more"
)

# Picture (uint8 RGB [H, W, 3]) to the bearing of its largest box in degrees; None without a box.
LargestBearing = Callable[[NDArray], float | None]


@dataclass(frozen=True)
class BoxFinder:
    """A detector at work.

    Attributes:
        largest_bearing: what it sees.
        max_width: wider pictures are scaled down to this many columns first.
    """

    largest_bearing: LargestBearing
    max_width: int = 256


@dataclass(frozen=True)
class BearingTrack:
    """Bearings over time.

    Attributes:
        times_P: seconds on the file's own clock.
        bearing_deg_P: positive to the left; NaN where there is no box.
    """

    times_P: np.ndarray
    bearing_deg_P: np.ndarray


def load_box_finder(checkpoint: str, *, fov_deg: float | None = None) -> BoxFinder:
    """Loads the detector of a checkpoint, and nothing else of it.

    Args:
        checkpoint: folder, bundled name or hub id.
        fov_deg: horizontal field of view, degrees; None takes the checkpoint's own.

    Raises:
        UserError: no such checkpoint, damaged weights, or a field of view out of range.
    """
    from spatial_v2a.conditioning.perception import Perception
    from spatial_v2a.models.checkpoint import find_checkpoint, read_config

    if fov_deg is not None and not 1 <= fov_deg <= 175:
        raise UserError(f"field of view {fov_deg:g} is not in 1..175 degrees; mend --fov")
    folder = find_checkpoint(checkpoint)
    config = read_config(folder).perception
    detector = Perception.from_checkpoint(folder, config, cues=("boxes",)).detector
    fov = config.default_fov_deg if fov_deg is None else fov_deg

    def largest_bearing(image_HWC: NDArray) -> float | None:
        import torch

        from spatial_v2a.geometry import azimuth_rad
        from spatial_v2a.inference.engine.engine import engine_threads

        with engine_threads("cpu"):
            (found,) = detector.detect(torch.from_numpy(image_HWC.copy())[None])
        # The score that a box needs to begin a track: weaker ones are guesses.
        corners_K4 = found.corners_K4[found.score_K >= config.boxes.new_track_score]
        if len(corners_K4) == 0:
            return None
        area_K = np.prod(corners_K4[:, 2:] - corners_K4[:, :2], axis=1)
        x1, _, x2, _ = corners_K4[int(area_K.argmax())]
        return float(np.degrees(azimuth_rad(float(x1 + x2) / 2, fov)))

    return BoxFinder(largest_bearing, max_width=config.boxes.image_width)


def find_bearings(
    path: Path, finder: BoxFinder, *, on_picture: Callable[[int], None] | None = None
) -> BearingTrack:
    """Bearing of the largest box, PICTURE_HZ times a second; a few pictures are in memory.

    Raises:
        UserError: the picture is damaged or cut off.
    """
    from spatial_v2a.conditioning.video import open_video

    source = open_video(path, timing=Timing(tick_hz=PICTURE_HZ))
    bearings, shown, bearing = array("d"), None, None
    for image_HWC in source.ticks(max_width=finder.max_width):
        if image_HWC is not shown:
            shown, bearing = image_HWC, finder.largest_bearing(image_HWC)
        bearings.append(float("nan") if bearing is None else bearing)
        if on_picture is not None:
            on_picture(len(bearings))
    times_P = float(source.extent.start_s) + np.arange(len(bearings)) / PICTURE_HZ
    return BearingTrack(times_P, np.array(bearings))


@dataclass(frozen=True)
class SwapVerdict:
    """Whether left and right agree with the picture.

    Attributes:
        verdict: FOLLOWS, SWAPPED or UNKNOWN.
        reason: why it is UNKNOWN; empty otherwise.
        num_pictures: pictures looked at, PICTURE_HZ a second.
        num_boxes: of these, pictures with a box.
        num_windows: of these, audible ones: the windows compared.
        correlation: Pearson's r of bearing and level difference; NaN when undefined.
        p_value: share of the circular shifts (and the pair itself) with at least this |r|.
        num_shifts: shifts behind it.
        num_off_centre, same_side: windows with the box more than 5 degrees off centre, and the
            share of them whose louder channel (by 1 dB) is on the box's side.
    """

    verdict: str
    reason: str
    num_pictures: int = 0
    num_boxes: int = 0
    num_windows: int = 0
    correlation: float = float("nan")
    p_value: float = float("nan")
    num_shifts: int = 0
    num_off_centre: int = 0
    same_side: float = float("nan")


def difference_at(times_P: np.ndarray, times_T: np.ndarray, energies_TE: np.ndarray) -> np.ndarray:
    """Level difference of the 0.2 s of sound around each picture [P]; NaN where it is silent.

    Args:
        times_P: time of each picture, seconds on the file's clock.
        times_T: when each tick of sound begins, on the same clock.
        energies_TE: stereo energies per tick.
    """
    half_s = 0.5 / PICTURE_HZ
    # A tick belongs to the picture whose window holds its middle; clocks that jump back are cut.
    middle_T = np.maximum.accumulate(times_T + 0.5 / TIMING.tick_hz)
    first_P = np.searchsorted(middle_T, times_P - half_s)
    last_P = np.searchsorted(middle_T, times_P + half_s)
    sums_TE = np.vstack([np.zeros((1, 3)), np.cumsum(energies_TE, axis=0)])
    count_P = np.maximum(last_P - first_P, 1)
    mean_PE = np.maximum(0.0, (sums_TE[last_P] - sums_TE[first_P]) / count_P[:, None])
    return np.where(level_dbfs(mean_PE) > SILENT_DBFS, level_difference_db(mean_PE), np.nan)


def judge(bearing_deg_P: np.ndarray, difference_db_P: np.ndarray) -> SwapVerdict:
    """Compares the two curves; see RULE.

    Args:
        bearing_deg_P: bearing of the largest box per picture, NaN without a box.
        difference_db_P: from `difference_at`.
    """
    has_box_P = ~np.isnan(bearing_deg_P)
    used_P = has_box_P & ~np.isnan(difference_db_P)
    off, same = sign_sums(difference_db_P[used_P], bearing_deg_P[used_P])
    r, p_value, num_shifts = _shift_test(bearing_deg_P, difference_db_P)
    verdict, reason = _verdict(int(used_P.sum()), r, p_value, num_shifts, len(used_P))
    return SwapVerdict(
        verdict=verdict,
        reason=reason,
        num_pictures=len(used_P),
        num_boxes=int(has_box_P.sum()),
        num_windows=int(used_P.sum()),
        correlation=r,
        p_value=p_value,
        num_shifts=num_shifts,
        num_off_centre=int(off),
        same_side=float(same / off) if off else float("nan"),
    )


def _verdict(
    num_windows: int, r: float, p_value: float, num_shifts: int, num_pictures: int
) -> tuple[str, str]:
    """The verdict, and why it is not a clear one."""
    if num_windows < MIN_WINDOWS:
        return UNKNOWN, f"{num_windows} audible windows with a box, {MIN_WINDOWS} are needed"
    if np.isnan(r):
        return UNKNOWN, "the box does not move"
    if num_shifts < MIN_SHIFTS:
        needed_s = (MIN_SHIFTS + 2 * MIN_SHIFT_WINDOWS - 1) / PICTURE_HZ
        return UNKNOWN, (
            f"{num_pictures / PICTURE_HZ:g} s of picture give {num_shifts} usable shifts,"
            f" {MIN_SHIFTS} are needed (at least {needed_s:g} s, with boxes throughout)"
        )
    if p_value > MAX_P_VALUE:
        return UNKNOWN, f"p is above {MAX_P_VALUE}: shifted curves agree as well"
    needed = STRICT_MIN_CORRELATION if p_value <= STRICT_P_VALUE else MIN_CORRELATION
    if abs(r) < needed:
        return UNKNOWN, f"|r| is below {needed}"
    return (FOLLOWS if r > 0 else SWAPPED), ""


def _shift_test(x_P: np.ndarray, y_P: np.ndarray) -> tuple[float, float, int]:
    """Correlation of two curves with holes, its p value under circular shifts, and their number."""
    sums_RS = _shifted_sums(x_P, y_P)
    if len(sums_RS) == 0:
        return float("nan"), float("nan"), 0
    r_R = correlation(sums_RS)
    shifts = np.arange(len(sums_RS))
    is_far = (shifts >= MIN_SHIFT_WINDOWS) & (shifts <= len(sums_RS) - MIN_SHIFT_WINDOWS)
    # A shift that brings few windows together has a wild r.
    usable = is_far & (sums_RS[:, 0] >= max(MIN_WINDOWS / 2, sums_RS[0, 0] / 2)) & ~np.isnan(r_R)
    null_R = np.abs(r_R[usable])
    if np.isnan(r_R[0]) or len(null_R) == 0:
        return float(r_R[0]), float("nan"), len(null_R)
    num_as_large = int((null_R >= abs(r_R[0]) - 1e-9).sum())
    return float(r_R[0]), (1 + num_as_large) / (1 + len(null_R)), len(null_R)


def _shifted_sums(x_P: np.ndarray, y_P: np.ndarray) -> np.ndarray:
    """Sums [n, x, y, xx, yy, xy] over the pairs (x[p], y[p + shift]) for every shift [R, 6]."""
    has_x, has_y = ~np.isnan(x_P), ~np.isnan(y_P)
    if not has_x.any() or not has_y.any():
        return np.zeros((0, 6))
    # Centred, so that the variances do not drown in the rounding of the transforms.
    x = np.where(has_x, x_P - x_P[has_x].mean(), 0.0)
    y = np.where(has_y, y_P - y_P[has_y].mean(), 0.0)
    x0, x1, x2 = (np.fft.rfft(v).conj() for v in (has_x.astype(float), x, x**2))
    y0, y1, y2 = (np.fft.rfft(v) for v in (has_y.astype(float), y, y**2))
    products = (x0 * y0, x1 * y0, x0 * y1, x2 * y0, x0 * y2, x1 * y1)
    sums_RS = np.stack([np.fft.irfft(p, n=len(x_P)) for p in products], axis=-1)
    sums_RS[:, 0] = np.round(sums_RS[:, 0])
    return sums_RS
