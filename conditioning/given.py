"""Geometry that is given, not detected: a Stage clip or a JSONL file makes the same features.

JSONL, one line per observation, ordered by time:
    {"t": 0.0, "fov_deg": 90, "boxes": [{"id": 3, "class": "bell", "x": 0.4, "y": 0.3,
     "w": 0.1, "h": 0.3, "nearness": 0.5, "score": 1.0}], "depth": [[...], ...]}
`x`, `y` are the box's top left corner; all are fractions of the picture. `nearness`, `score`,
`fov_deg` and `depth` may be left out; tick n shows the newest line with t <= n / 30 s.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.box_fields import Box, BoxTokenBuilder, frame_features
from spatial_v2a.conditioning.vocabulary import vocabulary_names
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.geometry import pool_grid
from spatial_v2a.perception_config import PerceptionConfig
from spatial_v2a.timing import TIMING


class Degrade(Protocol):
    """Makes given geometry as imperfect as detected geometry (training.degrade)."""

    def __call__(self, boxes_T: list[list[Box]]) -> list[list[Box]]:
        """Boxes of every tick, with faults."""

    def nearness(self, grid_THW: NDArray) -> NDArray:
        """Nearness grids of every tick, with faults."""


def clip_boxes(clip: Clip, config: PerceptionConfig) -> list[list[Box]]:
    """The engine's boxes of every tick of a Stage clip, nearness left to the depth grid."""
    index = {name: i for i, name in enumerate(vocabulary_names(config.detector.vocabulary))}
    return [
        [_box(entry, index, where=f"{clip.meta['key']} tick {n}") for entry in tick["boxes"]]
        for n, tick in enumerate(clip.meta["ticks"])
    ]


def clip_features(
    clip: Clip, config: PerceptionConfig, *, degrade: Degrade | None = None
) -> FrameFeatures:
    """Boxes and depth of a whole Stage clip as features [1, T]; the DINO stream is absent.

    Args:
        clip: a recording with the engine's boxes and depth.
        config: vocabulary, grid and number of slots.
        degrade: makes given boxes as imperfect as detected ones (training.degrade).
    """
    boxes_T = clip_boxes(clip, config)
    if degrade is not None:
        boxes_T = degrade(boxes_T)
    nearness_THW = pool_grid(clip.nearness_THW, config.depth.grid)
    if degrade is not None:
        nearness_THW = degrade.nearness(nearness_THW)
    nearness_THW = nearness_THW.astype(np.float32)
    builder = BoxTokenBuilder(max_boxes=config.max_boxes)
    fov_deg = float(clip.meta["fov_deg"])
    tokens = [
        builder.step(
            [replace(box, nearness=None) for box in boxes], fov_deg=fov_deg, nearness_HW=grid
        )
        for boxes, grid in zip(boxes_T, nearness_THW, strict=True)
    ]
    return frame_features(config, tokens=tokens, nearness_THW=nearness_THW, num_ticks=len(boxes_T))


def given_features(source: Clip | str | Path, config: PerceptionConfig) -> Iterator[FrameFeatures]:
    """Features [1, 1] tick by tick from a Stage clip or the path of a JSONL file.

    A JSONL file ends at the tick of its last line; callers that need more ticks repeat the last.

    Raises:
        UserError: the file is missing, or a line is not what the format says.
    """
    if isinstance(source, str | Path):
        yield from _jsonl_features(Path(source), config)
        return
    features = clip_features(source, config)
    for tick in range(source.num_ticks):
        yield features.map(lambda x, tick=tick: x[:, tick : tick + 1])


def overlay_given(features: FrameFeatures, given: FrameFeatures) -> FrameFeatures:
    """Replaces the boxes and the depth of `features` by the given ones, where these are present.

    A whole stream is replaced when its flag is set in the first tick of `given`.
    """
    if bool(given.has_boxes_BT[0, 0]):
        names = ("boxes_BTKF", "class_BTK", "box_mask_BTK", "has_boxes_BT")
        features = replace(features, **{name: getattr(given, name) for name in names})
    if bool(given.has_depth_BT[0, 0]):
        names = ("depth_BTHW", "has_depth_BT")
        features = replace(features, **{name: getattr(given, name) for name in names})
    return features


def _jsonl_features(path: Path, config: PerceptionConfig) -> Iterator[FrameFeatures]:
    """Holds each line until the next one is due; memory does not grow with the file."""
    index = {name: i for i, name in enumerate(vocabulary_names(config.detector.vocabulary))}
    builder = BoxTokenBuilder(max_boxes=config.max_boxes)
    lines = _read_lines(path)
    line, where = next(lines, (None, ""))
    if line is None:
        raise UserError(f"{path} has no line; write one JSON object per tick")
    following = next(lines, None)
    tick = 0
    while line is not None:
        # Half a microsecond absorbs times written as rounded decimals (0.0333333333).
        while following is not None and following[0]["t"] <= tick / TIMING.tick_hz + 5e-7:
            (line, where), following = following, next(lines, None)
        boxes = [_box(entry, index, where=where) for entry in line.get("boxes", [])]
        grid_HW = _depth_grid(line, config, where=where)
        fov_deg = float(line.get("fov_deg", config.default_fov_deg))
        tokens = builder.step(boxes, fov_deg=fov_deg, nearness_HW=grid_HW)
        yield frame_features(
            config,
            tokens=[tokens],
            nearness_THW=None if grid_HW is None else grid_HW[None],
            num_ticks=1,
        )
        tick += 1
        if following is None:
            return


def _read_lines(path: Path) -> Iterator[tuple[dict, str]]:
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    last_s = -1.0
    with file:
        for number, text in enumerate(file, start=1):
            where = f"{path} line {number}"
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON ({error.msg}); one object a line") from error
            if not isinstance(line, dict) or not isinstance(line.get("t"), int | float):
                raise UserError(f'{where} has no number "t"; give the time in seconds')
            if line["t"] < last_s:
                raise UserError(f"{where}: t {line['t']} goes back; order the lines by time")
            last_s = line["t"]
            yield line, where


def _depth_grid(line: dict, config: PerceptionConfig, *, where: str) -> NDArray | None:
    if line.get("depth") is None:
        return None
    rows, columns = config.depth.grid
    try:
        grid_HW = np.asarray(line["depth"], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: depth is not a grid of numbers; give rows of numbers") from error
    if grid_HW.shape != (rows, columns):
        raise UserError(f"{where}: depth is {grid_HW.shape}; give {rows} rows of {columns}")
    if not (np.isfinite(grid_HW).all() and grid_HW.min() >= 0 and grid_HW.max() <= 1):
        raise UserError(f"{where}: depth leaves 0..1; give nearness, 1 touches the camera")
    return grid_HW


def _box(entry: dict, index: dict[str, int], *, where: str) -> Box:
    """Checks one box of a clip or a JSONL line."""
    try:
        x, y, w, h = (float(entry[name]) for name in ("x", "y", "w", "h"))
        name, track_id = entry["class"], int(entry["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: box {entry} lacks {error}; give id, class, x, y, w, h"
        ) from error
    if name not in index:
        raise UserError(f"{where}: unknown class {name!r}; choose from {', '.join(index)}")
    if not (w > 0 and h > 0 and x + w > 0 and y + h > 0 and x < 1 and y < 1):
        raise UserError(f"{where}: box {entry} is outside the picture; use fractions 0..1")
    near = entry.get("nearness")
    return Box(
        track_id=track_id,
        class_index=index[name],
        cx=x + w / 2,
        cy=y + h / 2,
        w=w,
        h=h,
        score=float(entry.get("score", 1.0)),
        nearness=None if near is None else float(near),
    )
