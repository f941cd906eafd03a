"""What a recording knows about its sounding source: bearing, visibility, class, audible windows.

Legend: T ticks, W windows. Azimuth in degrees, POSITIVE TO THE LEFT; NaN where there is none.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from spatial_v2a.audio.stereo import level_dbfs, window_energies
from spatial_v2a.geometry import azimuth_rad
from spatial_v2a.timing import TIMING

# Windows of 0.2 s: long enough to hold an impulse train, short enough to follow a passer-by.
WINDOW_TICKS = 6
WINDOW_SAMPLES = WINDOW_TICKS * TIMING.samples_per_tick
AUDIBLE_DBFS = -50.0
JUST_LEFT_TICKS = 30
# Degrees per tick (30 a second) from which a view counts as turning.
TURN_DEG = 1.0


@dataclass(frozen=True)
class ClipTruth:
    """Per-tick truth of the one source that sounds ("the target").

    Attributes:
        key: the recording's key.
        scenario: name of the scenario it was recorded in.
        class_name: class of the target, None when no or several classes sound in the clip.
        azimuth_T: bearing of the target's position; NaN where not exactly one source sounds.
        screen_azimuth_T: bearing of the centre of its box; NaN where it is not in the picture.
        left_T: True within one second after the target was last in the picture.
        distance_T: distance of the target from the listener in map units; NaN as in `azimuth_T`.
        turning_T: True where the view turns: the bearing changes, the target stands still.
    """

    key: str
    scenario: str
    class_name: str | None
    azimuth_T: np.ndarray
    screen_azimuth_T: np.ndarray
    left_T: np.ndarray
    distance_T: np.ndarray
    turning_T: np.ndarray

    @property
    def num_ticks(self) -> int:
        """Length of the recording in ticks."""
        return len(self.azimuth_T)


@dataclass(frozen=True)
class WindowTruth:
    """Truth per window of WINDOW_TICKS ticks.

    Attributes:
        azimuth_W: mean bearing of the target where it is scored, by its box when on screen.
        on_screen_W: audible in the ground truth, and the target in the picture at every tick.
        left_W: audible in the ground truth, not in the picture, gone for at most one second.
        audible_W: the ground truth is at least AUDIBLE_DBFS and one source sounds.
        turning_W: the view turns in at least half of its ticks.
    """

    azimuth_W: np.ndarray
    on_screen_W: np.ndarray
    left_W: np.ndarray
    audible_W: np.ndarray
    turning_W: np.ndarray


def clip_truth(meta: dict[str, Any]) -> ClipTruth:
    """Reads the truth from a recording's metadata (the `json` part of a clip)."""
    ticks = meta["ticks"]
    azimuth_T = np.full(len(ticks), np.nan)
    screen_T = np.full(len(ticks), np.nan)
    distance_T = np.full(len(ticks), np.nan)
    position_T2 = np.full((len(ticks), 2), np.nan)
    left_T = np.zeros(len(ticks), dtype=bool)
    last_seen: dict[Any, int] = {}
    classes = set()
    for index, tick in enumerate(ticks):
        boxes = {box["id"]: box for box in tick["boxes"]}
        for identity in boxes:
            last_seen[identity] = index
        sounding = [source for source in tick["sources"] if source["sounding"]]
        classes.update(source["class"] for source in sounding)
        if len(sounding) != 1:
            continue
        target = sounding[0]
        azimuth_T[index] = target["azimuth_deg"]
        distance_T[index] = target["distance"]
        position_T2[index] = target["x"], target["y"]
        box = boxes.get(target["id"])
        if box is not None and target["visible"]:
            centre = azimuth_rad(box["x"] + box["w"] / 2, meta["fov_deg"])
            screen_T[index] = np.degrees(centre)
        elif box is None and target["id"] in last_seen:
            left_T[index] = index - last_seen[target["id"]] <= JUST_LEFT_TICKS
    return ClipTruth(
        key=meta["key"],
        scenario=meta["scenario"],
        class_name=classes.pop() if len(classes) == 1 else None,
        azimuth_T=azimuth_T,
        screen_azimuth_T=screen_T,
        left_T=left_T,
        distance_T=distance_T,
        turning_T=_turning(azimuth_T, position_T2),
    )


def _turning(azimuth_T: np.ndarray, position_T2: np.ndarray) -> np.ndarray:
    """Where the bearing changes by TURN_DEG a tick while the target stands still in the world."""
    step_T = np.diff(azimuth_T, prepend=azimuth_T[:1])
    step_T = (step_T + 180.0) % 360.0 - 180.0
    moved_T = np.linalg.norm(np.diff(position_T2, axis=0, prepend=position_T2[:1]), axis=1)
    return (np.abs(np.nan_to_num(step_T)) >= TURN_DEG) & (np.nan_to_num(moved_T, nan=1.0) < 0.5)


def window_truth(truth: ClipTruth, audio_LC: np.ndarray) -> WindowTruth:
    """Cuts the truth into whole windows; `audio_LC` is the ground-truth sound [L, 2]."""
    num_windows = min(truth.num_ticks // WINDOW_TICKS, len(audio_LC) // WINDOW_SAMPLES)

    def cut(values_T: np.ndarray) -> np.ndarray:
        return values_T[: num_windows * WINDOW_TICKS].reshape(num_windows, WINDOW_TICKS)

    bearing_WT, screen_WT = cut(truth.azimuth_T), cut(truth.screen_azimuth_T)
    level_W = level_dbfs(window_energies(audio_LC, window_samples=WINDOW_SAMPLES))[:num_windows]
    audible_W = (level_W >= AUDIBLE_DBFS) & ~np.isnan(bearing_WT).any(axis=1)
    on_screen_W = audible_W & ~np.isnan(screen_WT).any(axis=1)
    left_W = audible_W & cut(truth.left_T).all(axis=1)
    azimuth_W = np.where(on_screen_W, screen_WT.mean(axis=1), circular_mean_deg(bearing_WT))
    turning_W = cut(truth.turning_T).mean(axis=1) >= 0.5
    return WindowTruth(azimuth_W, on_screen_W, left_W, audible_W, turning_W)


def circular_mean_deg(azimuth_WT: np.ndarray) -> np.ndarray:
    """Mean bearing over the last axis in degrees, right across +-180."""
    radians = np.radians(azimuth_WT)
    return np.degrees(np.arctan2(np.sin(radians).mean(axis=-1), np.cos(radians).mean(axis=-1)))


def class_window_starts(
    truth: ClipTruth, audio_LC: np.ndarray, *, window_samples: int, hop_samples: int
) -> list[int]:
    """First samples of the windows in which a classifier should know the target's class.

    A window counts when at least half of it is audible in the ground truth.
    """
    audible_W = window_truth(truth, audio_LC).audible_W
    audible_L = np.repeat(audible_W, WINDOW_SAMPLES)
    last = len(audible_L) - window_samples
    return [
        start
        for start in range(0, last + 1, hop_samples)
        if audible_L[start : start + window_samples].mean() >= 0.5
    ]
