"""Geometry that is given, not detected: a Stage clip or a JSONL file makes the same features.

JSONL, one line per observation, ordered by time, the first at t = 0:
    {"t": 0.0, "fov_deg": 90, "boxes": [{"id": 3, "class": "bell", "x": 0.4, "y": 0.3,
     "w": 0.1, "h": 0.3, "nearness": 0.5, "score": 1.0, "mute": false}], "depth": [[...], ...]}
`x`, `y` are the box's top left corner; all are fractions of the picture. `nearness`, `score`,
`fov_deg`, `depth`, `mute` and `solo` may be left out, other keys (`azimuth_deg`, ...) are not read;
tick n shows the newest line with t <= n / 30 s. An object whose box is gone is held for a moment,
as a detected one is (`conditioning/persistence.py`). It stays where it is in the world if lines say
how far the camera has turned to the left since the line before (`"turn_deg": 1.5`). Where one says
`"cut": true` another scene begins, and nothing is held across it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.box_fields import (
    Box,
    BoxTokenBuilder,
    BoxTokens,
    frame_features,
    slots_of,
)
from spatial_v2a.conditioning.camera_turn import CameraTurn
from spatial_v2a.conditioning.given_lines import (
    box_entries,
    depth_grid,
    entry_box,
    entry_track_id,
    line_fov_deg,
    line_is_cut,
    line_turn_deg,
    marked_boxes,
    read_lines,
)
from spatial_v2a.conditioning.persistence import TrackPersistence
from spatial_v2a.conditioning.track_edits import (
    TrackEditor,
    TrackEdits,
    check_ids,
    hide_boxes,
)
from spatial_v2a.conditioning.vocabulary import vocabulary_names
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.geometry import pool_grid, slide_turn_deg
from spatial_v2a.perception_config import PerceptionConfig
from spatial_v2a.timing import TIMING

# Half a microsecond absorbs times written as rounded decimals (0.0333333333).
TIME_ROUNDING_S = 5e-7


class Degrade(Protocol):
    """Makes given geometry as imperfect as detected geometry (training.degrade)."""

    def __call__(self, boxes_T: list[list[Box]]) -> list[list[Box]]:
        """Boxes of every tick, with faults."""

    def nearness(self, grid_THW: NDArray) -> NDArray:
        """Nearness grids of every tick, with faults."""


def clip_boxes(clip: Clip, config: PerceptionConfig) -> list[list[Box]]:
    """The engine's boxes of every tick of a Stage clip, nearness left to the depth grid."""
    index = {name: i for i, name in enumerate(vocabulary_names(config.boxes.vocabulary))}
    return [
        [entry_box(entry, index, where=f"{clip.meta['key']} tick {n}") for entry in tick["boxes"]]
        for n, tick in enumerate(clip.meta["ticks"])
    ]


def clip_features(
    clip: Clip,
    config: PerceptionConfig,
    *,
    degrade: Degrade | None = None,
    slides_T: Sequence[float] | None = None,
) -> FrameFeatures:
    """Boxes and depth of a whole Stage clip as features [1, T]; the DINO stream is absent.

    Vanished boxes are held after `degrade`: the gaps that it makes are bridged as a detector's are,
    and its false objects stay as long, so that a model is trained on what it will see.

    Args:
        clip: a recording with the engine's boxes and depth.
        config: vocabulary, grid and number of slots.
        degrade: makes given boxes as imperfect as detected ones (training.degrade).
        slides_T: result of `clip_slides`, for a clip without its pictures.
    """
    tokens, _, nearness_THW = _clip_tokens(clip, config, degrade, slides_T)
    return frame_features(config, tokens=tokens, nearness_THW=nearness_THW, num_ticks=len(tokens))


def clip_ticks(
    clip: Clip, config: PerceptionConfig, *, degrade: Degrade | None = None
) -> Iterator[tuple[FrameFeatures, tuple[Box, ...]]]:
    """The ticks of `clip_features`, one by one, each with its boxes.

    Args:
        clip, config, degrade: as there.

    Yields:
        Features [1, 1] and the boxes that they were made of, in the order that `slots_of` wants:
        those seen and those held, also those that found no slot.
    """
    for tokens, boxes, grid in zip(*_clip_tokens(clip, config, degrade, None), strict=True):
        features = frame_features(config, tokens=[tokens], nearness_THW=grid[None], num_ticks=1)
        yield features, tuple(boxes)


def clip_slides(clip: Clip) -> list[float]:
    """How far every picture of a clip slid to the right since the last, as a share of its width.

    A clip that was loaded without its pictures turns nowhere.
    """
    if "frames.npz" not in clip.parts:
        return [0.0] * clip.num_ticks
    turn = CameraTurn()
    return [turn.step(frame) for frame in clip.frames()]


def _clip_tokens(
    clip: Clip,
    config: PerceptionConfig,
    degrade: Degrade | None,
    slides_T: Sequence[float] | None,
) -> tuple[list[BoxTokens], list[list[Box]], NDArray]:
    """Box tokens and the boxes of every tick, and nearness grids [T, H, W] float32."""
    boxes_T = clip_boxes(clip, config)
    nearness_THW = pool_grid(clip.nearness_THW, config.depth.grid)
    if degrade is not None:
        boxes_T = degrade(boxes_T)
        nearness_THW = degrade.nearness(nearness_THW)
    nearness_THW = nearness_THW.astype(np.float32)
    fov_deg = float(clip.meta["fov_deg"])
    slides_T = clip_slides(clip) if slides_T is None else slides_T
    persistence = TrackPersistence(persistence_s=config.persistence_s)
    boxes_T = [
        persistence.step(
            [replace(box, nearness=None) for box in boxes],
            nearness_HW=grid,
            turn_deg=slide_turn_deg(slide, fov_deg),
            fov_deg=fov_deg,
        )
        for boxes, grid, slide in zip(boxes_T, nearness_THW, slides_T, strict=True)
    ]
    builder = BoxTokenBuilder(max_boxes=config.max_boxes)
    tokens = [
        builder.step(boxes, fov_deg=fov_deg, nearness_HW=grid)
        for boxes, grid in zip(boxes_T, nearness_THW, strict=True)
    ]
    return tokens, boxes_T, nearness_THW


@dataclass(frozen=True)
class GivenTick:
    """One tick of a JSONL file.

    Attributes:
        features: boxes and depth [1, 1], edited, and cuts; the DINO stream is absent.
        is_muted: objects are known, and edits silence every one of them.
        silenced: boxes of this tick that edits silence.
        boxes: those that are left, edited, and behind them those held, in the order in which the
            features were made of them.
        fov_deg: horizontal field of view.
    """

    features: FrameFeatures
    is_muted: bool
    silenced: tuple[Box, ...]
    boxes: tuple[Box, ...]
    fov_deg: float


def given_features(
    source: Clip | str | Path, config: PerceptionConfig, edits: TrackEdits | None = None
) -> Iterator[FrameFeatures]:
    """Features [1, 1] tick by tick from a Stage clip or the path of a JSONL file.

    A JSONL file ends at the tick of its last line, or when nothing is held any more; callers that
    need more ticks repeat the last.

    Args:
        source: where the geometry is.
        config: vocabulary, grid and number of slots.
        edits: what is done to the objects of a JSONL file.

    Raises:
        UserError: the file is missing, a line is not what the format says, or edits name an object
            that is not in the file.
    """
    if isinstance(source, str | Path):
        for tick in given_ticks(source, config, edits):
            yield tick.features
        return
    features = clip_features(source, config)
    for tick in range(source.num_ticks):
        yield features.map(lambda x, tick=tick: x[:, tick : tick + 1])


def given_ticks(
    path: str | Path, config: PerceptionConfig, edits: TrackEdits | None = None
) -> Iterator[GivenTick]:
    """Ticks of a JSONL file as in `given_features`, each with whether everything is muted.

    Each line is held until the next one is due; memory does not grow with the file.

    Raises:
        UserError: as `given_features`.
    """
    path = Path(path)
    index = {name: i for i, name in enumerate(vocabulary_names(config.boxes.vocabulary))}
    builder, editor = BoxTokenBuilder(max_boxes=config.max_boxes), _editor(path, edits)
    persistence = TrackPersistence(persistence_s=config.persistence_s)
    lines = read_lines(path)
    line, where = next(lines, (None, ""))
    if line is None:
        raise UserError(f"{path} has no line; write one JSON object per tick")
    is_cut, turn_deg = line_is_cut(line, where=where), line_turn_deg(line, where=where)
    following = next(lines, None)
    if line["t"] > TIME_ROUNDING_S:
        raise UserError(f"{where}: the first t is {line['t']:g}; begin with a line at t 0")
    tick = 0
    while True:
        while (
            following is not None and following[0]["t"] <= tick / TIMING.tick_hz + TIME_ROUNDING_S
        ):
            (line, where), following = following, next(lines, None)
            is_cut |= line_is_cut(line, where=where)
            turn_deg += line_turn_deg(line, where=where)
        grid_HW = depth_grid(line, config, where=where)
        view = {"fov_deg": line_fov_deg(line, config, where=where), "nearness_HW": grid_HW}
        if is_cut:
            persistence.reset()
            builder.reset()
        heard = editor.step(marked_boxes(line, index, where=where), **view)
        persistence.forget(filter(editor.silences, persistence.track_ids))
        boxes = persistence.step(heard, turn_deg=turn_deg, silenced=editor.silenced, **view)
        features = frame_features(
            config,
            tokens=[builder.step(boxes, **view)],
            nearness_THW=None if grid_HW is None else grid_HW[None],
            num_ticks=1,
        )
        features.is_cut_BT[:] = is_cut
        is_cut, turn_deg = False, 0.0
        yield GivenTick(
            features, editor.is_muted, tuple(editor.silenced), tuple(boxes), view["fov_deg"]
        )
        tick += 1
        if following is None and not any(box.is_persisted for box in boxes):
            return


def overlay_given(features: FrameFeatures, given: FrameFeatures) -> FrameFeatures:
    """Replaces the boxes and the depth of `features` by the given ones, where these are present.

    A whole stream is replaced when its flag is set in the first tick of `given`. A cut of either is
    one.
    """
    features = replace(features, is_cut_BT=features.is_cut_BT | given.is_cut_BT)
    if bool(given.has_boxes_BT[0, 0]):
        names = ("boxes_BTKF", "class_BTK", "box_mask_BTK", "has_boxes_BT")
        features = replace(features, **{name: getattr(given, name) for name in names})
    if bool(given.has_depth_BT[0, 0]):
        names = ("depth_BTHW", "has_depth_BT")
        features = replace(features, **{name: getattr(given, name) for name in names})
    return features


def overlay_tick(
    features: FrameFeatures, tick: GivenTick, config: PerceptionConfig
) -> FrameFeatures:
    """`overlay_given`, and silenced objects taken out of patches and depth.

    Args:
        features: perception of one tick's picture, [1, 1] leading.
        tick: what is given for it.
        config: whose patch grid it has.
    """
    given = tick.features
    # A held object is not in the picture: there is nothing of it to be kept.
    seen = [not tick.boxes[i].is_persisted for i in slots_of(tick.boxes, config.max_boxes)]
    heard_K4 = given.boxes_BTKF[0, 0, : len(seen), :4].numpy()[seen]
    shown = overlay_given(features, given)
    return hide_boxes(shown, tick.silenced, heard_K4, grid_width=config.dino.grid[1])


def _editor(path: Path, edits: TrackEdits | None) -> TrackEditor:
    """An editor that knows the file's ids, which are read only where edits name some."""
    if edits is None or not edits.ids:
        return TrackEditor()
    known: set[int] = set()
    for line, where in read_lines(path):
        known.update(entry_track_id(entry, where=where) for entry in box_entries(line, where=where))
    check_ids(edits, known, where=str(path))
    return TrackEditor(edits, known)
