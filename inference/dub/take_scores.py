"""Scores one take against its scene - sync, direction, artefacts - and ranks several takes.

Legend: T ticks. Bearings in degrees, POSITIVE TO THE LEFT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatial_v2a.audio.panning import law_azimuth_deg
from spatial_v2a.audio.stereo import pan_curve
from spatial_v2a.inference.dub.take_meter import TakeMeter
from spatial_v2a.inference.dub.take_scene import SceneNotes
from spatial_v2a.inference.dub.take_timing import (
    MAX_SHIFT_TICKS,
    contrast,
    shifted_correlation,
    speed,
)
from spatial_v2a.timing import TIMING

# Less motion than this, standard deviation in grey levels of 255, is a still picture.
STILL_GREY = 0.25
# A box whose bearing never changes by this much within 0.2 s does not move.
STILL_DEG = 1.0
# Curves that agree less than this even at their best shift name no shift: it would be chance.
MIN_AGREEMENT = 0.3
# Fewer ticks with a box, half a second, say nothing about direction.
MIN_BOX_TICKS = TIMING.tick_hz // 2
# As near to the box as makes no difference; also what keeps a source straight ahead defined.
TOLERANCE_DEG = 5.0
# One damaged tick in twenty halves the score.
HALF_DAMAGED_SHARE = 0.05
# Barks, bells and crows pause for up to 0.4 s in 40 game sounds; silence that lasts longer than
# this beside a box is a missing sound.
MISSING_TICKS = TIMING.tick_hz


@dataclass(frozen=True)
class TakeScore:
    """Three scores of one take, 0 (bad) to 1 (good), and the figures behind them.

    Whether sync or direction can be told depends on the scene alone: None for one take is None
    for all of them.

    Attributes:
        sync: 0.5 is what an unrelated sound gets; None when nothing moves.
        direction: 1 on the boxes, 0.5 in the middle, 0 mirrored; None without boxes.
        artefacts: 1 without a fault; None without sound.
        onset_contrast: correlation of onsets and motion, in time minus out of time; None when
            the picture stands still.
        movement_contrast: the same of how fast pan and boxes move; None when no box moves.
        shift_ms: shift of the sound at which both together agree most, up to a second; positive
            is late; None where they agree nowhere.
        pan_correlation: of the bearing heard and the boxes' bearing; None where undefined.
        pan_error_deg: mean absolute difference of the two.
        num_heard_ticks: ticks with a box and audible sound, on which direction rests.
        num_clicks, num_clipped_samples, num_cuts: faults, see take_faults.py.
        damaged_share: share of the ticks with one of them.
        silent_share: share of the ticks below SILENT_DBFS.
        missing_share: share of the ticks in over a second of silence beside a box.
    """

    sync: float | None
    direction: float | None
    artefacts: float | None
    onset_contrast: float | None
    movement_contrast: float | None
    shift_ms: float | None
    pan_correlation: float | None
    pan_error_deg: float | None
    num_heard_ticks: int
    num_clicks: int
    num_clipped_samples: int
    num_cuts: int
    damaged_share: float
    silent_share: float
    missing_share: float

    @property
    def total(self) -> float:
        """Plain mean of the scores that can be told; 0 when none can.

        A mean, so that each part moves the rank by as much as the takes differ in it. A product
        would let one zero hide all other differences.
        """
        told = [part for part in (self.sync, self.direction, self.artefacts) if part is not None]
        return float(np.mean(told)) if told else 0.0


def score_take(scene: SceneNotes, meter: TakeMeter) -> TakeScore:
    """Scores one take; a take that is silent throughout gets 0 for sync and for direction.

    Args:
        scene: the picture, all ticks.
        meter: the take, as many ticks (the shorter of the two counts).
    """
    count = min(scene.num_ticks, len(meter.is_audible_T))
    expected_T = scene.bearing_deg_T[:count]
    heard_T = heard_bearing_deg(meter)[:count]
    return TakeScore(
        **_sync(scene.motion_T[:count], expected_T, meter, heard_T),
        **_direction(expected_T, heard_T),
        **_artefacts(scene, meter, count),
    )


def rank_takes(scores: Sequence[TakeScore]) -> list[int]:
    """Indices of the takes by total, best first; equal ones keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index].total)


def heard_bearing_deg(meter: TakeMeter) -> np.ndarray:
    """Bearing from which the panning law would sound like this [T]; NaN where silent."""
    return law_azimuth_deg(pan_curve(meter.energies_TE))


def missing_ticks(scene: SceneNotes, meter: TakeMeter) -> np.ndarray:
    """True in stretches of over MISSING_TICKS ticks that are silent although a box is there [T]."""
    count = min(scene.num_ticks, len(meter.is_audible_T))
    is_empty_T = scene.has_box_T[:count] & ~meter.is_audible_T[:count]
    edges = np.flatnonzero(np.diff(is_empty_T.astype(np.int8), prepend=0, append=0))
    is_missing_T = np.zeros(count, bool)
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        is_missing_T[first:end] = end - first > MISSING_TICKS
    return is_missing_T


def _sync(
    motion_T: np.ndarray, expected_T: np.ndarray, meter: TakeMeter, heard_T: np.ndarray
) -> dict[str, float | None]:
    """Contrasts of onsets against motion and of moving pan against moving boxes: -1..1 to 0..1."""
    nothing = dict.fromkeys(("sync", "onset_contrast", "movement_contrast", "shift_ms"))
    curves = {}
    if len(motion_T) and motion_T.std() > STILL_GREY:
        onsets_T = meter.onsets.strength_db_T[: len(motion_T)]
        curves["onset_contrast"] = shifted_correlation(motion_T, onsets_T)
    moved_T = speed(expected_T)
    if np.nan_to_num(moved_T).max(initial=0.0) > STILL_DEG:
        curves["movement_contrast"] = shifted_correlation(moved_T, speed(heard_T))
    if not curves:
        return nothing
    together_G = sum(curves.values())
    found = {name: contrast(r_G) for name, r_G in curves.items()}
    is_silent = not meter.is_audible_T.any()
    sync = 0.0 if is_silent else float(np.clip((1 + sum(found.values())) / 2, 0.0, 1.0))
    shift_ms = None
    if together_G.max() >= MIN_AGREEMENT:
        shift_ms = 1000 / TIMING.tick_hz * (int(np.argmax(together_G)) - MAX_SHIFT_TICKS)
    return nothing | found | {"sync": sync, "shift_ms": shift_ms}


def _direction(expected_T: np.ndarray, heard_T: np.ndarray) -> dict[str, float | int | None]:
    """Concordance of both bearings (Lin 1989, Biometrics 45) about straight ahead, as 0..1.

    2 sum(e h) / (sum(e^2) + sum(h^2)) is 1 only when both are the same, 0 for mono and -1
    mirrored; about the mean it could not tell the side of a box that stands still.
    """
    has_box_T, is_used_T = ~np.isnan(expected_T), ~np.isnan(expected_T) & ~np.isnan(heard_T)
    expected, heard = expected_T[is_used_T], heard_T[is_used_T]
    found: dict[str, float | int | None] = dict.fromkeys(
        ("direction", "pan_correlation", "pan_error_deg")
    )
    found["num_heard_ticks"] = len(heard)
    if has_box_T.sum() < MIN_BOX_TICKS:
        return found
    if len(heard) == 0:
        return found | {"direction": 0.0}
    slack = TOLERANCE_DEG**2 * len(heard)
    shared = 2 * (expected * heard).sum() + slack
    concordance = shared / ((expected**2).sum() + (heard**2).sum() + slack)
    if expected.std() > 0 and heard.std() > 0:
        found["pan_correlation"] = float(np.corrcoef(expected, heard)[0, 1])
    found["pan_error_deg"] = float(np.abs(expected - heard).mean())
    return found | {"direction": float(np.clip((1 + concordance) / 2, 0.0, 1.0))}


def _artefacts(scene: SceneNotes, meter: TakeMeter, count: int) -> dict[str, float | int | None]:
    """Halved for every twentieth of damaged ticks, times the share that is not missing."""
    faults = meter.faults
    damaged = float(faults.is_damaged_T[:count].mean()) if count else 0.0
    missing = float(missing_ticks(scene, meter).mean()) if count else 0.0
    return {
        "artefacts": 0.5 ** (damaged / HALF_DAMAGED_SHARE) * (1.0 - missing) if count else None,
        "num_clicks": int(faults.clicks_T[:count].sum()),
        "num_clipped_samples": int(faults.clipped_T[:count].sum()),
        "num_cuts": int(faults.cuts_T[:count].sum()),
        "damaged_share": damaged,
        "silent_share": float(1.0 - meter.is_audible_T[:count].mean()) if count else 0.0,
        "missing_share": missing,
    }
