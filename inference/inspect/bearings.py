"""Looks for the largest box in a video's pictures, five a second: where the main source stands."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.errors import UserError
from spatial_v2a.inference.inspect.swap import PICTURE_HZ
from spatial_v2a.timing import Timing

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
    from spatial_v2a.conditioning.bundle import Perception
    from spatial_v2a.models.checkpoint import find_checkpoint, read_config

    if fov_deg is not None and not 1 <= fov_deg <= 175:
        raise UserError(f"field of view {fov_deg:g} is not in 1..175 degrees; mend --fov")
    folder = find_checkpoint(checkpoint)
    config = read_config(folder).perception
    detector = Perception.from_checkpoint(folder, config, streams=("boxes",)).detector
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
