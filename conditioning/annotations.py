"""Annotations: boxes and depth of a Stage clip or a JSONL file, as features like detected ones.

JSONL, one line per observation, ordered by time, the first at t = 0:
    {"t": 0.0, "fov_deg": 90, "boxes": [{"id": 3, "class": "bell", "x": 0.4, "y": 0.3,
     "w": 0.1, "h": 0.3, "nearness": 0.5, "score": 1.0, "mute": false}], "depth": [[...], ...]}
`x`, `y` are the box's top left corner; all are fractions of the picture. `nearness`, `score`,
`fov_deg`, `depth`, `mute` and `solo` may be left out, other keys (`azimuth_deg`, ...) are not read;
tick n shows the newest line with t <= n / 30 s. An object whose box is gone is held for a moment,
as a detected one is (`conditioning/tracker.py`). It stays where it is in the world if lines say
how far the camera has turned to the left since the line before (`"turn_deg": 1.5`). Where one says
`"cut": true` another scene begins, and nothing is held across it.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.bounded import open_regular, parse_json
from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.boxes import (
    Box,
    BoxTokenBuilder,
    BoxTokens,
    frame_features,
    slots_of,
)
from spatial_v2a.conditioning.scene import CameraTurn
from spatial_v2a.conditioning.track_edits import (
    MarkedBox,
    TrackEditor,
    TrackEdits,
    check_ids,
    hide_boxes,
)
from spatial_v2a.conditioning.tracker import TrackPersistence
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.geometry import pool_grid, slide_turn_deg
from spatial_v2a.timing import TIMING

# Half a microsecond absorbs times written as rounded decimals (0.0333333333).
TIME_ROUNDING_S = 5e-7
# A longer film is not dubbed in one piece; such a time is in milliseconds, or since 1970.
MAX_TIME_S = 24 * 3600.0
# A line of the largest preset has 10 kB of depth.
MAX_LINE_CHARS = 2**20
MAX_TRACK_ID = 2**31 - 1
# From line to line; what turns farther is nearer the other way round.
MAX_TURN_DEG = 180.0


class Degrade(Protocol):
    """Makes annotations as imperfect as detections (training.degrade)."""

    def __call__(self, boxes_T: list[list[Box]]) -> list[list[Box]]:
        """Boxes of every tick, with faults."""

    def nearness(self, grid_THW: NDArray) -> NDArray:
        """Nearness grids of every tick, with faults."""


def clip_boxes(clip: Clip, config: PerceptionConfig) -> list[list[Box]]:
    """The engine's boxes of every tick of a Stage clip, nearness left to the depth grid."""
    index = config.class_indices
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
        degrade: makes boxes as imperfect as detected ones (training.degrade).
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
class AnnotatedTick:
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


def annotated_features(
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
        for tick in annotated_ticks(source, config, edits):
            yield tick.features
        return
    features = clip_features(source, config)
    for tick in range(source.num_ticks):
        yield features.map(lambda x, tick=tick: x[:, tick : tick + 1])


def annotated_ticks(
    path: str | Path, config: PerceptionConfig, edits: TrackEdits | None = None
) -> Iterator[AnnotatedTick]:
    """Ticks of a JSONL file as in `annotated_features`, each with whether everything is muted.

    Each line is held until the next one is due; memory does not grow with the file.

    Raises:
        UserError: as `annotated_features`.
    """
    path = Path(path)
    index = config.class_indices
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
        yield AnnotatedTick(
            features, editor.is_muted, tuple(editor.silenced), tuple(boxes), view["fov_deg"]
        )
        tick += 1
        if following is None and not any(box.is_persisted for box in boxes):
            return


def overlay_annotations(features: FrameFeatures, annotated: FrameFeatures) -> FrameFeatures:
    """Replaces the boxes and the depth of `features` by annotated ones, where these are present.

    A whole stream is replaced when its flag is set in the first tick of `annotated`. A cut of
    either is one.
    """
    features = replace(features, is_cut_BT=features.is_cut_BT | annotated.is_cut_BT)
    if bool(annotated.has_boxes_BT[0, 0]):
        names = ("boxes_BTKF", "class_BTK", "box_mask_BTK", "has_boxes_BT")
        features = replace(features, **{name: getattr(annotated, name) for name in names})
    if bool(annotated.has_depth_BT[0, 0]):
        names = ("depth_BTHW", "has_depth_BT")
        features = replace(features, **{name: getattr(annotated, name) for name in names})
    return features


def overlay_tick(
    features: FrameFeatures, tick: AnnotatedTick, config: PerceptionConfig
) -> FrameFeatures:
    """`overlay_annotations`, and silenced objects taken out of patches and depth.

    Args:
        features: perception of one tick's picture, [1, 1] leading.
        tick: its annotations.
        config: whose patch grid it has.
    """
    annotated = tick.features
    # A held object is not in the picture: there is nothing of it to be kept.
    seen = [not tick.boxes[i].is_persisted for i in slots_of(tick.boxes, config.max_boxes)]
    heard_K4 = annotated.boxes_BTKF[0, 0, : len(seen), :4].numpy()[seen]
    shown = overlay_annotations(features, annotated)
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


def read_lines(path: Path) -> Iterator[tuple[dict, str]]:
    """Lines of a file in order, each with where it stands, for messages."""
    last_s = -1.0
    # A byte order mark, as some editors write it, is not part of the first line.
    with open_regular(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
        try:
            for number, text in enumerate(iter(lambda: file.readline(MAX_LINE_CHARS), ""), start=1):
                where = f"{path} line {number}"
                if len(text) == MAX_LINE_CHARS:
                    raise UserError(
                        f"{where} has {MAX_LINE_CHARS} characters or more; give JSON, one object a"
                        " line"
                    )
                if text.strip():
                    line = _parse(text, where=where)
                    last_s = _check_time(line, last_s, where=where)
                    yield line, where
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text; give JSON, one object a line") from error


def _parse(text: str, *, where: str) -> dict:
    line = parse_json(text, where=where)
    if not isinstance(line, dict):
        raise UserError(f'{where} is no object; write {{"t": 0.0, "boxes": [...]}}')
    return line


def _check_time(line: dict, last_s: float, *, where: str) -> float:
    time_s = line.get("t")
    if not isinstance(time_s, int | float) or isinstance(time_s, bool):
        raise UserError(f'{where} has no number "t"; give the time in seconds')
    if time_s < 0:
        raise UserError(f"{where}: t {time_s} is before the picture's start; begin at t 0")
    if time_s < last_s:
        raise UserError(f"{where}: t {time_s} goes back; order the lines by time")
    if time_s > MAX_TIME_S:
        shown = str(time_s)[:20]
        raise UserError(f"{where}: t {shown} is over a day; give seconds from the picture's start")
    return float(time_s)


def line_fov_deg(line: dict, config: PerceptionConfig, *, where: str) -> float:
    """Horizontal field of view of a line, degrees."""
    fov_deg = line.get("fov_deg")
    if fov_deg is None:
        return config.default_fov_deg
    if isinstance(fov_deg, bool) or not isinstance(fov_deg, int | float) or not 1 <= fov_deg <= 175:
        raise UserError(f"{where}: fov_deg {fov_deg!r} is not in 1..175; give degrees")
    return float(fov_deg)


def line_turn_deg(line: dict, *, where: str) -> float:
    """How far the camera has turned to the left since the line before, degrees."""
    turn_deg = line.get("turn_deg")
    if turn_deg is None:
        return 0.0
    is_number = isinstance(turn_deg, int | float) and not isinstance(turn_deg, bool)
    if not is_number or abs(turn_deg) > MAX_TURN_DEG:
        shown = str(turn_deg)[:20]
        raise UserError(
            f"{where}: turn_deg {shown} is not in -180..180; give degrees, left above 0"
        )
    return float(turn_deg)


def line_is_cut(line: dict, *, where: str) -> bool:
    """Whether another scene begins with a line."""
    is_cut = line.get("cut")
    if is_cut is None:
        return False
    if not isinstance(is_cut, bool):
        raise UserError(f"{where}: cut {is_cut!r} is not true or false; write one of them")
    return is_cut


def depth_grid(line: dict, config: PerceptionConfig, *, where: str) -> NDArray | None:
    """Nearness grid [H, W] of a line, or None."""
    if line.get("depth") is None:
        return None
    rows, columns = config.depth.grid
    try:
        grid_HW = np.asarray(line["depth"], dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: depth is not a grid of numbers; give rows of numbers") from error
    if grid_HW.shape != (rows, columns):
        raise UserError(f"{where}: depth is {grid_HW.shape}; give {rows} rows of {columns}")
    if not (np.isfinite(grid_HW).all() and grid_HW.min() >= 0 and grid_HW.max() <= 1):
        raise UserError(f"{where}: depth leaves 0..1; give nearness, 1 touches the camera")
    return grid_HW


def box_entries(line: dict, *, where: str) -> list[dict]:
    """The boxes of a line, not checked yet."""
    entries = line.get("boxes")
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: boxes is not a list of objects; write [] where there is none")
    return entries


def marked_boxes(line: dict, index: dict[str, int], *, where: str) -> list[MarkedBox]:
    """The checked boxes of a line with their marks.

    Args:
        line: from `read_lines`.
        index: number of every class.
        where: for messages.
    """
    marked, ids = [], set()
    for entry in box_entries(line, where=where):
        box = entry_box(entry, index, where=where)
        if box.track_id in ids:
            raise UserError(f"{where}: id {box.track_id} is there twice; one box per object")
        ids.add(box.track_id)
        marks = [entry.get(name, False) for name in ("mute", "solo")]
        if not all(isinstance(mark, bool) for mark in marks):
            raise UserError(f"{where}: mute and solo of box {entry} must be true or false")
        marked.append(MarkedBox(box, *marks))
    return marked


def entry_track_id(entry: dict, *, where: str) -> int:
    """The checked id of a box."""
    track_id = entry.get("id")
    if isinstance(track_id, float) and track_id.is_integer():
        return entry_track_id({"id": int(track_id)}, where=where)
    is_number = isinstance(track_id, int) and not isinstance(track_id, bool)
    if not is_number or not 0 <= track_id <= MAX_TRACK_ID:
        raise UserError(f"{where}: id {track_id!r} of box {entry} is not 0, 1, 2, ...; number it")
    return track_id


def entry_box(entry: dict, index: dict[str, int], *, where: str) -> Box:
    """Checks one box of a clip or a JSONL line."""
    try:
        x, y, w, h = (float(entry[name]) for name in ("x", "y", "w", "h"))
        name, track_id = entry["class"], entry["id"]
        near, score = entry.get("nearness"), float(entry.get("score", 1.0))
        near = None if near is None else float(near)
    except KeyError as error:
        raise UserError(
            f"{where}: box {entry} lacks {error}; give id, class, x, y, w, h"
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: box {entry}: {error}; give numbers") from error
    track_id = entry_track_id(entry, where=where)
    if not isinstance(name, str) or name not in index:
        raise UserError(f"{where}: unknown class {name!r}; choose from {', '.join(index)}")
    if not (w > 0 and h > 0 and x + w > 0 and y + h > 0 and x < 1 and y < 1):
        raise UserError(f"{where}: box {entry} is outside the picture; use fractions 0..1")
    if not all(math.isfinite(value) for value in (x, y, w, h)):
        raise UserError(f"{where}: box {entry} is not finite; use fractions 0..1")
    for word, value in (("score", score), ("nearness", near)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{where}: {word} {value:g} of box {entry} leaves 0..1; correct it")
    return Box(
        track_id=track_id,
        class_index=index[name],
        cx=x + w / 2,
        cy=y + h / 2,
        w=w,
        h=h,
        score=score,
        nearness=near,
    )
