"""Writes the tracked objects of a video as JSONL, a line per tick, as `dub --annotations` reads it.

Every number is written with all its digits: an unedited file gives the sound of a dub without it.
Legend: K boxes, H W rows and columns of the depth grid.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.video import VideoSource, open_video
from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs, cannot_write, check_writable
from spatial_v2a.geometry import azimuth_rad, nearness_in_boxes
from spatial_v2a.inference.dub.track_picture import TrackPicture
from spatial_v2a.inference.engine.pipeline import Pipeline, Seen
from spatial_v2a.timing import TIMING

SUFFIX = ".jsonl"
TIME_DECIMALS = 6


@dataclass(frozen=True)
class TracksJob:
    """One video whose objects are to be written.

    Attributes:
        source: the checked video.
        out: JSONL to write.
        picture: PNG to write, or None.
        overwrite: whether files that exist are replaced.
    """

    source: VideoSource
    out: Path
    picture: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class TrackSummary:
    """One object over the whole video.

    Attributes:
        track_id: its number in the file.
        class_name: the class it was given most often.
        first_s, last_s: when it was first seen, and until when, seconds.
        seen_s: how long it was seen altogether, seconds.
        share: `seen_s` as a share of the video, 0..1.
        mean_azimuth_deg: its mean bearing, POSITIVE TO THE LEFT.
    """

    track_id: int
    class_name: str
    first_s: float
    last_s: float
    seen_s: float
    share: float
    mean_azimuth_deg: float


@dataclass(frozen=True)
class TracksResult:
    """What was written.

    Attributes:
        out, picture: the files.
        duration_s: length of the video's picture.
        num_ticks: lines written.
        tracks: the objects in the order of their ids.
    """

    out: Path
    picture: Path | None
    duration_s: float
    num_ticks: int
    tracks: tuple[TrackSummary, ...]


@dataclass
class _Seen:
    first_tick: int
    last_tick: int = 0
    num_ticks: int = 0
    sum_deg: float = 0.0
    num_by_class: dict[str, int] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return max(self.num_by_class, key=lambda name: self.num_by_class[name])


def plan_tracks(
    video: Path, *, out: Path | None = None, overwrite: bool = False, has_picture: bool = True
) -> TracksJob:
    """Checks a video and the files to write; touches nothing.

    Args:
        video: file to look at.
        out: JSONL to write, or an existing folder; None is `VIDEO's stem.tracks.jsonl` beside it.
        overwrite: whether files that exist are replaced.
        has_picture: whether `NAME.tracks.png` is drawn beside the JSONL.

    Raises:
        UserError: anything that would stop the work later.
    """
    if out is None or out.is_dir():
        out = (video.parent if out is None else out) / f"{video.stem}.tracks{SUFFIX}"
    if out.suffix != SUFFIX:
        raise UserError(f"-o {out} does not end in {SUFFIX}; call it {out.stem}{SUFFIX}")
    picture = out.with_name(f"{out.stem.removesuffix('.tracks')}.tracks.png")
    source = open_video(video)
    for path in (out, picture) if has_picture else (out,):
        check_writable(path, overwrite=overwrite)
    return TracksJob(
        source=source, out=out, picture=picture if has_picture else None, overwrite=overwrite
    )


class TrackWriter:
    """Writes the objects of one video after another.

    Args:
        pipeline: with depth and detector; it need not hear.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._names = pipeline.perceptions.config.class_names

    def write(
        self, job: TracksJob, *, on_tick: Callable[[int], None] | None = None
    ) -> TracksResult:
        """Writes a job's files, all of them or none; memory grows by 32 bytes per box only.

        Args:
            job: from `plan_tracks`.
            on_tick: called with the number of ticks done.

        Raises:
            UserError: the video turns out damaged, or the disk cannot take the files.
        """
        pipeline = self._pipeline
        pipeline.look_at(job.source)
        seen: dict[int, _Seen] = {}
        picture = None if job.picture is None else TrackPicture(job.source.num_ticks)
        num_ticks = 0
        try:
            with Outputs(overwrite=job.overwrite) as outputs:
                outputs.follow_links([job.picture] if job.picture else [])
                looks = pipeline.seen(job.source.ticks(max_width=pipeline.max_width))
                with outputs.new(job.out).open("w", encoding="utf-8") as file, closing(looks):
                    for one in looks:
                        entries, grid_HW, camera = self._entries(one)
                        file.write(_line(num_ticks, one.fov_deg, camera, entries, grid_HW))
                        _note(seen, num_ticks, entries)
                        if picture is not None:
                            picture.add(one.image_HWC, entries)
                        num_ticks += 1
                        if on_tick is not None:
                            on_tick(num_ticks)
                if picture is not None and job.picture is not None:
                    labels = {i: f"{i} {one.class_name}" for i, one in seen.items()}
                    picture.draw(outputs.new(job.picture), title=job.source.path.name,
                                 labels=labels, edge_deg=pipeline.fov_deg / 2)  # fmt: skip
        except OSError as error:
            raise cannot_write(job.out, error) from error
        return TracksResult(
            out=job.out,
            picture=job.picture,
            duration_s=float(job.source.duration),
            num_ticks=num_ticks,
            tracks=tuple(_summary(i, seen[i], num_ticks) for i in sorted(seen)),
        )

    def _entries(self, seen: Seen) -> tuple[list[dict], NDArray, dict]:
        """A tick's boxes, its depth grid [H, W] and its camera, for JSONL."""
        grid_HW = seen.features.depth_BTHW[0, 0].numpy()
        # What is held follows from what was seen, for the reader of the file as well.
        boxes = [box for box in seen.boxes if not box.is_persisted]
        corners_K4 = np.array([[b.cx, b.cy, b.w, b.h] for b in boxes]).reshape(-1, 4)
        near_K = [
            from_grid if box.nearness is None else np.float32(box.nearness)
            for box, from_grid in zip(boxes, nearness_in_boxes(grid_HW, corners_K4), strict=True)
        ]
        entries = [
            self._entry(*pair, fov_deg=seen.fov_deg) for pair in zip(boxes, near_K, strict=True)
        ]
        camera = {"turn_deg": seen.turn_deg} if seen.turn_deg else {}
        is_cut = bool(seen.features.is_cut_BT)
        return entries, grid_HW, camera | ({"cut": True} if is_cut else {})

    def _entry(self, box: Box, near: np.float32, *, fov_deg: float) -> dict:
        return {
            "id": box.track_id,
            "class": self._names[box.class_index],
            "x": corner(box.cx, box.w),
            "y": corner(box.cy, box.h),
            "w": box.w,
            "h": box.h,
            "score": box.score,
            "nearness": _shortest(near),
            "azimuth_deg": round(float(np.degrees(azimuth_rad(box.cx, fov_deg))), 2),
        }


def corner(centre: float, size: float) -> float:
    """The number c nearest to centre - size / 2 for which c + size / 2 is `centre` to the bit."""
    low = centre - size / 2
    for value in (low, np.nextafter(low, -np.inf), np.nextafter(low, np.inf)):
        if value + size / 2 == centre:
            return float(value)
    return low


def _line(
    tick: int, fov_deg: float, camera: dict, entries: Sequence[dict], grid_HW: NDArray
) -> str:
    line = {
        "t": round(tick / TIMING.tick_hz, TIME_DECIMALS),
        "fov_deg": fov_deg,
        **camera,
        "boxes": entries,
        "depth": [[_shortest(value) for value in row] for row in grid_HW],
    }
    return json.dumps(line, separators=(",", ":")) + "\n"


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that is this one in float32."""
    return float(str(value))


def _note(seen: dict[int, _Seen], tick: int, entries: Sequence[dict]) -> None:
    for entry in entries:
        one = seen.setdefault(entry["id"], _Seen(first_tick=tick))
        one.last_tick = tick
        one.num_ticks += 1
        one.sum_deg += entry["azimuth_deg"]
        one.num_by_class[entry["class"]] = one.num_by_class.get(entry["class"], 0) + 1


def _summary(track_id: int, seen: _Seen, num_ticks: int) -> TrackSummary:
    return TrackSummary(
        track_id=track_id,
        class_name=seen.class_name,
        first_s=seen.first_tick / TIMING.tick_hz,
        last_s=(seen.last_tick + 1) / TIMING.tick_hz,
        seen_s=seen.num_ticks / TIMING.tick_hz,
        share=seen.num_ticks / num_ticks,
        mean_azimuth_deg=seen.sum_deg / seen.num_ticks,
    )
