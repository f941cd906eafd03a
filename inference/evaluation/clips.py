"""Finds the clips of a report in shards, and turns them into records without keeping them.

Legend: T ticks, N sources, L samples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatial_v2a.bounded import shard_parts
from spatial_v2a.clip import Clip, parse_meta, read_shards
from spatial_v2a.errors import UserError
from spatial_v2a.geometry import azimuth_rad
from spatial_v2a.inference.evaluation import av_align
from spatial_v2a.inference.evaluation.rows import ClipRecord, Picture
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import clip_truth, window_truth


@dataclass(frozen=True)
class Chosen:
    """Clips of a run.

    Attributes:
        paths: shards to read.
        scored: keys whose position is scored, in the order of the shards.
        silent: keys of clips in which nothing sounds, for the silence check.
        known: every key in the shards.
    """

    paths: list[Path]
    scored: list[str]
    silent: list[str]
    known: set[str]


def choose_clips(
    folders: list[Path],
    *,
    num_clips: int | None,
    scenario: str | None,
    silence_folders: list[Path] | None = None,
    num_silent: int = 4,
) -> Chosen:
    """Picks clips spread evenly over the sorted keys of all shards.

    Args:
        folders: folders of .tar shards.
        num_clips: how many to score, all when None.
        scenario: keep one scenario only (silent clips are kept all the same).
        silence_folders: more folders, of which only the silent clips are taken.
        num_silent: how many silent clips to keep at most.

    Raises:
        UserError: missing folder, no shards, no clips, fewer clips than asked for.
    """
    paths = list(dict.fromkeys(path for folder in folders for path in _shards(folder)))
    sounding, silent, scenarios = [], [], set()
    for meta in read_metadata(paths):
        scenarios.add(meta["scenario"])
        if not _has_target(meta):
            silent += [meta["key"]] * _is_silent(meta)
        elif scenario is None or meta["scenario"] == scenario:
            sounding.append(meta["key"])
    where = ", ".join(str(folder) for folder in folders)
    if not sounding:
        wanted = f" of scenario {scenario!r}" if scenario else ""
        raise UserError(
            f"no sounding clips{wanted} in {where}; "
            f"scenarios there: {', '.join(sorted(scenarios)) or 'none'}"
        )
    if num_clips is not None and num_clips > len(sounding):
        raise UserError(
            f"--clips {num_clips} but {where} holds {len(sounding)} sounding clips; "
            "ask for fewer or record more"
        )
    more = [path for folder in silence_folders or [] for path in _shards(folder)]
    silent += [meta["key"] for meta in read_metadata(more) if _is_silent(meta)]
    return Chosen(
        list(dict.fromkeys([*paths, *more])),
        _spread(sounding, num_clips),
        _spread(silent, min(num_silent, len(silent))),
        {*sounding, *silent},
    )


def read_clips(chosen: Chosen, keys: list[str]) -> Iterator[Clip]:
    """Reads the clips of these keys, one at a time, in the order of the shards."""
    wanted = set(keys)
    for clip in read_shards(chosen.paths):
        if clip.meta["key"] in wanted:
            yield clip


def clip_record(
    clip: Clip,
    number: int,
    *,
    panner_azimuth_T: np.ndarray | None = None,
    motion_peaks_s: Sequence[float] = (),
    load_stems: Callable[[], np.ndarray] | None = None,
) -> ClipRecord:
    """What the rows and figures need to know of a clip.

    Args:
        clip: the recording.
        number: its position in the run.
        panner_azimuth_T: bearing of the largest box for the box-centre panner; None takes the
            engine's own.
        motion_peaks_s: when the motion of its picture peaks.
        load_stems: reads its sources; None unless several were recorded.
    """
    meta, truth = clip.meta, clip_truth(clip.meta)
    given_T = given_box_azimuth_deg(meta)
    edges_T = [
        np.array([[box["x"], box["x"] + box["w"]] for box in tick["boxes"]]).reshape(-1, 2)
        * av_align.PICTURE_WIDTH_PX
        for tick in meta["ticks"]
    ]
    picture = Picture(
        given_T,
        meta["fov_deg"],
        edges_px_D=av_align.detection_frames(edges_T),
        motion_peaks_s=np.array(motion_peaks_s, dtype=np.float64),
    )
    return ClipRecord(
        key=truth.key,
        number=number,
        num_samples=truth.num_ticks * TIMING.samples_per_tick,
        picture=picture,
        panner_azimuth_T=given_T if panner_azimuth_T is None else panner_azimuth_T,
        truth=truth,
        windows=window_truth(truth, clip.audio_LC()),
        load_stems=load_stems,
        azimuths_NT=None if load_stems is None else np.stack([*source_azimuths(meta).values()]),
    )


def motion_peaks_s(clip: Clip) -> list[float]:
    """Times at which the picture's motion peaks (AV-Align), from halved pictures: 1 s a clip."""
    meter, step = av_align.MotionMeter(), 1
    while clip.frame(0).shape[1] > av_align.MOTION_WIDTH * step:
        step *= 2
    for frame_HWC in clip.frames():
        meter.add(np.ascontiguousarray(frame_HWC[::step, ::step]))
    return meter.peaks_s()


def given_box_azimuth_deg(meta: dict[str, Any]) -> np.ndarray:
    """Bearing of the engine's own largest box per tick [T], degrees, NaN without a box."""
    largest_T = [
        max(tick["boxes"], key=lambda box: box["w"] * box["h"], default=None)
        for tick in meta["ticks"]
    ]
    return np.array([np.nan if box is None else box_azimuth_deg(box, meta) for box in largest_T])


def source_azimuths(meta: dict[str, Any]) -> dict[int, np.ndarray]:
    """Bearing of each source's box per tick, degrees [T]; NaN where not in the picture or silent.

    Args:
        meta: a recording's metadata.
    """
    ticks = meta["ticks"]
    azimuths = {source["id"]: np.full(len(ticks), np.nan) for source in meta["sources"]}
    for index, tick in enumerate(ticks):
        boxes = {box["id"]: box for box in tick["boxes"]}
        for source in tick["sources"]:
            box = boxes.get(source["id"])
            if box is not None and source["visible"] and source["sounding"]:
                azimuths[source["id"]][index] = box_azimuth_deg(box, meta)
    return azimuths


def box_azimuth_deg(box: dict[str, Any], meta: dict[str, Any]) -> float:
    """Bearing of a box's centre, positive left."""
    return float(np.degrees(azimuth_rad(box["x"] + box["w"] / 2, meta["fov_deg"])))


def _is_silent(meta: dict[str, Any]) -> bool:
    """Whether nothing sounds at any tick (in combat clips the game's own noise does)."""
    return meta["scenario"] == "silence" and not _has_target(meta)


def _has_target(meta: dict[str, Any]) -> bool:
    """Whether a source with a known position sounds at some tick."""
    return any(source["sounding"] for tick in meta["ticks"] for source in tick["sources"])


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give --data a folder of .tar shards")
    paths = sorted(folder.rglob("*.tar"))
    if not paths:
        raise UserError(f"no .tar shards in {folder}; record some with `spatial-v2a-train record`")
    return paths


def read_metadata(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Metadata of every clip of shards, in their order.

    Raises:
        UserError: a shard that cannot be read.
    """
    for path in paths:
        for part in shard_parts(path):
            if part.name == "json":
                yield parse_meta(part.read(), where=f"{path}: metadata of clip {part.key}")


def _spread(keys: list[str], count: int | None) -> list[str]:
    """`count` keys spread evenly over the sorted ones, in their first order."""
    if count is None or count >= len(keys):
        return keys
    ordered = sorted(keys)
    picks = {ordered[i] for i in np.linspace(0, len(keys) - 1, count).round().astype(int)}
    return [key for key in keys if key in picks]
