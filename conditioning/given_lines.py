"""The lines of a JSONL file of given geometry, checked one by one: a bad one is named and told why.

The format stands at the top of `conditioning/given.py`.
"""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.bounded import open_regular, parse_json
from spatial_v2a.conditioning.box_fields import Box
from spatial_v2a.conditioning.track_edits import MarkedBox
from spatial_v2a.errors import UserError
from spatial_v2a.perception_config import PerceptionConfig

# A longer film is not dubbed in one piece; such a time is in milliseconds, or since 1970.
MAX_TIME_S = 24 * 3600.0
# A line of the largest preset has 10 kB of depth.
MAX_LINE_CHARS = 2**20
MAX_TRACK_ID = 2**31 - 1
# From line to line; what turns farther is nearer the other way round.
MAX_TURN_DEG = 180.0


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
