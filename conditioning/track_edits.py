"""Edits of tracked objects: mute, solo and move, applied to the boxes of one tick after another.

An object is silenced in a tick when its box or `TrackEdits.mute` says mute, or when any object is
soloed and it is not. Mute wins over solo. The marks of an object are those of its newest box, so a
soloed object stays soloed while it is out of the picture.
Legend: L samples, C audio channels, H W rows and columns of the depth grid.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spatial_v2a.conditioning.boxes import FORGET_AFTER_S, Box
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.features import FrameFeatures
from spatial_v2a.geometry import azimuth_rad, nearness_in_boxes
from spatial_v2a.timing import TIMING

MAX_MOVE_DEG = 180.0
# Short enough to follow a cut, long enough not to click.
FADE_MS = 20.0


@dataclass(frozen=True)
class TrackEdits:
    """What is to be done to the objects of a whole file.

    Attributes:
        mute: ids that make no sound.
        solo: ids that alone make a sound; empty for everybody.
        move_deg: pairs of an id and the degrees its bearing is shifted by, POSITIVE TO THE LEFT.
    """

    mute: tuple[int, ...] = ()
    solo: tuple[int, ...] = ()
    move_deg: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuses edits that contradict each other."""
        moved = [track_id for track_id, _ in self.move_deg]
        for track_id in set(self.mute) & set(self.solo):
            raise UserError(f"object {track_id} is both muted and soloed; choose one of the two")
        for track_id in moved:
            if moved.count(track_id) > 1:
                raise UserError(f"object {track_id} is moved twice; give one shift in degrees")
        for track_id, shift_deg in self.move_deg:
            if not abs(shift_deg) <= MAX_MOVE_DEG:
                raise UserError(
                    f"object {track_id} is moved by {shift_deg:g} degrees; give -180..180,"
                    " positive to the left"
                )

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id that is named, in order."""
        return tuple(sorted({*self.mute, *self.solo, *(i for i, _ in self.move_deg)}))


@dataclass(frozen=True)
class MarkedBox:
    """A box of a tracks file with the marks it carries there."""

    box: Box
    is_mute: bool = False
    is_solo: bool = False


def parse_edits(
    mute: Sequence[int] = (), solo: Sequence[int] = (), move: Sequence[str] = ()
) -> TrackEdits | None:
    """Edits from a command line's words; None when there are none.

    Args:
        mute: ids to silence.
        solo: ids to keep alone.
        move: texts `ID:DEGREES`, positive to the left: `3:-20` moves object 3 to the right.

    Raises:
        UserError: a text is not `ID:DEGREES`, or edits contradict each other.
    """
    edits = TrackEdits(
        as_tuple(mute, name="mute"),
        as_tuple(solo, name="solo"),
        tuple(_move(text) for text in as_tuple(move, name="move")),
    )
    return edits if edits.ids else None


def check_ids(edits: TrackEdits, known: Iterable[int], *, where: str) -> None:
    """Refuses edits of an object that a file does not have.

    Raises:
        UserError: naming the id, and the ids that are there.
    """
    known = sorted(set(known))
    for track_id in edits.ids:
        if track_id not in known:
            there = ", ".join(map(str, known)) or "none"
            raise UserError(f"{where} has no object {track_id}; choose from its ids: {there}")


class TrackEditor:
    """Applies edits to one tick after another and knows when everything is muted.

    Args:
        edits: None leaves only what the boxes themselves say.
        known_ids: every id of the file; needed with edits only.
    """

    def __init__(self, edits: TrackEdits | None = None, known_ids: Iterable[int] = ()) -> None:
        self._edits = edits or TrackEdits()
        self._shift_deg = dict(self._edits.move_deg)
        self._marked_solo: set[int] = set()
        self._ticks_unheard: float = math.inf
        known = set(known_ids)
        # Before the first box: silence when no object to come is to be heard.
        self.silenced: list[Box] = []
        self.is_muted = bool(self._edits.solo) or (bool(known) and known <= set(self._edits.mute))

    def step(
        self, marked: Sequence[MarkedBox], *, fov_deg: float, nearness_HW: NDArray | None = None
    ) -> list[Box]:
        """The boxes of a tick that are left, in their order, moved where they are to be.

        `silenced` then holds the others. `is_muted` is True when objects were seen and none of
        them is to be heard: it holds until one comes that is, and begins once none was in the
        picture for a second.

        Args:
            marked: boxes of this tick.
            fov_deg: horizontal field of view, degrees.
            nearness_HW: depth grid; a moved box without nearness keeps that of its old place.
        """
        for item in marked:
            changed = self._marked_solo.add if item.is_solo else self._marked_solo.discard
            changed(item.box.track_id)
        heard = [item.box for item in marked if not self._is_silenced(item)]
        self.silenced = [item.box for item in marked if self._is_silenced(item)]
        self._ticks_unheard = 0 if heard else self._ticks_unheard + 1
        if heard:
            self.is_muted = False
        elif marked and self._ticks_unheard > FORGET_AFTER_S * TIMING.tick_hz:
            self.is_muted = True
        moved = [self._moved(box, fov_deg, nearness_HW) for box in heard]
        return [box for box in moved if box is not None]

    def silences(self, track_id: int) -> bool:
        """Whether an object without a box in this tick would be silenced now."""
        soloed = self._marked_solo.union(self._edits.solo)
        return track_id in self._edits.mute or (bool(soloed) and track_id not in soloed)

    def _is_silenced(self, item: MarkedBox) -> bool:
        return item.is_mute or self.silences(item.box.track_id)

    def _moved(self, box: Box, fov_deg: float, nearness_HW: NDArray | None) -> Box | None:
        shift_deg = self._shift_deg.get(box.track_id)
        if shift_deg is None:
            return box
        near = box.nearness
        if near is None and nearness_HW is not None:
            corners_K4 = np.array([[box.cx, box.cy, box.w, box.h]])
            near = float(nearness_in_boxes(nearness_HW, corners_K4)[0])
        bearing = float(azimuth_rad(box.cx, fov_deg)) + math.radians(shift_deg)
        if abs(bearing) >= math.radians(fov_deg) / 2:
            return None
        return replace(box, cx=_column(bearing, fov_deg), nearness=near)


def hide_boxes(
    features: FrameFeatures, silenced: Sequence[Box], heard_K4: NDArray, *, grid_width: int
) -> FrameFeatures:
    """Takes silenced objects out of what patches and depth show: the model hears these, too.

    Cells that a silenced box touches, and no heard one, get the mean of those that none touches.

    Args:
        features: perception of one tick, [1, 1] leading.
        silenced: boxes of the objects to hide.
        heard_K4: cx, cy, w, h of the boxes that stay, fractions of the picture.
        grid_width: patches per row of the DINO grid.
    """
    if not silenced:
        return features
    hidden_K4 = np.array([[b.cx, b.cy, b.w, b.h] for b in silenced])
    patches = features.dino_BTND.clone()
    depth = features.depth_BTHW.clone()
    for cells, grid in (
        (patches, (patches.shape[2] // grid_width, grid_width)),
        (depth.flatten(2).unsqueeze(-1), tuple(depth.shape[2:])),
    ):
        touched_HW = _touched(hidden_K4, grid)
        is_hidden = torch.from_numpy((touched_HW & ~_touched(heard_K4, grid)).ravel())
        is_free = torch.from_numpy(~touched_HW.ravel())
        if is_free.any():
            cells[:, :, is_hidden] = cells[:, :, is_free].mean(2, keepdim=True)
    return replace(features, dino_BTND=patches, depth_BTHW=depth)


class MuteGate:
    """Fades sound out while everything is muted, and in again; one tick after another."""

    def __init__(self) -> None:
        self._was_muted: bool | None = None

    def apply(self, audio_LC: NDArray, *, is_muted: bool) -> NDArray:
        """The tick's sound [L, 2] through the gate; a change fades over its first FADE_MS.

        The fade is a raised cosine, the first tick has none.
        """
        before = is_muted if self._was_muted is None else self._was_muted
        self._was_muted = is_muted
        if before == is_muted:
            return np.zeros_like(audio_LC) if is_muted else audio_LC
        num_fade = min(round(FADE_MS * 1e-3 * TIMING.sample_rate_hz), len(audio_LC))
        gain_L = np.full(len(audio_LC), 0.0 if is_muted else 1.0)
        fall_L = 0.5 + 0.5 * np.cos(np.pi * (np.arange(num_fade) + 0.5) / num_fade)
        gain_L[:num_fade] = fall_L if is_muted else 1.0 - fall_L
        return (audio_LC * gain_L[:, None]).astype(audio_LC.dtype)


def _touched(boxes_K4: NDArray, grid: tuple[int, int]) -> NDArray:
    """Cells of a grid (rows, columns) that any box touches, bool [H, W]."""
    touched_HW = np.zeros(grid, bool)
    size = np.array([grid[1], grid[0]])
    for box_4 in boxes_K4:
        low = np.maximum(np.floor((box_4[:2] - box_4[2:] / 2) * size), 0).astype(int)
        high = np.maximum(np.ceil((box_4[:2] + box_4[2:] / 2) * size), 0).astype(int)
        touched_HW[low[1] : high[1], low[0] : high[0]] = True
    return touched_HW


def _column(bearing_rad: float, fov_deg: float) -> float:
    """Inverse of `geometry.azimuth_rad`: the picture column of a bearing, 0 at the left edge."""
    return (1.0 - math.tan(bearing_rad) / math.tan(math.radians(fov_deg) / 2.0)) / 2.0


def _move(text: str) -> tuple[int, float]:
    track_id, _, shift_deg = text.partition(":")
    try:
        move = int(track_id), float(shift_deg)
    except ValueError as error:
        raise UserError(f"move {text!r} is not ID:DEGREES; write 3:-20, say") from error
    if move[0] < 0 or not math.isfinite(move[1]):
        raise UserError(f"move {text!r} is not ID:DEGREES; write 3:-20, say")
    return move
