"""Many files with one model: folders and patterns, those that exist skipped, failures told apart.

A file that fails does not stop the rest. With several processes each has a model of its own.
"""

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spatial_v2a.concepts import Concept
from spatial_v2a.conditioning.vocabulary import STAGE
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.files import check_writable
from spatial_v2a.inference.engine_settings import EngineSettings
from spatial_v2a.inference.jobs import (
    DubJob,
    DubOptions,
    check_apart,
    default_out,
    plan_jobs,
    plan_takes,
)

if TYPE_CHECKING:
    from spatial_v2a.inference.dub import Dubber, DubResult
    from spatial_v2a.inference.dubbing.object_mix import Objects

log = logging.getLogger(__name__)

# What a folder is searched for; a file that is named may end in anything.
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
DUBBED = ".dubbed"


@dataclass(frozen=True)
class Recipe:
    """What every file of a run is dubbed with; can be sent to another process.

    Attributes:
        checkpoint, device, fov_deg, settings, detector, detector_weights, sounds: as for
            `Dubber`.
        objects: as for `Dubber`; None is its default, and for a redo what the earlier dub says.
        out, overwrite, report, options, command: as for `plan_jobs`.
    """

    checkpoint: str
    device: str
    settings: EngineSettings
    options: DubOptions
    fov_deg: float | None = None
    objects: "Objects | None" = None
    detector: str = STAGE
    detector_weights: Path | None = None
    sounds: Mapping[str, Concept | None] | None = None
    out: Path | None = None
    overwrite: bool = False
    report: bool = False
    command: str = ""

    def make_dubber(self) -> "Dubber":
        """The loaded model."""
        from spatial_v2a.inference.dub import Dubber
        from spatial_v2a.inference.dubbing.object_mix import DEFAULT_OBJECTS

        return Dubber(
            self.checkpoint,
            settings=self.settings,
            device=self.device,
            fov_deg=self.fov_deg,
            objects=self.objects or DEFAULT_OBJECTS,
            detector=self.detector,
            detector_weights=self.detector_weights,
            sounds=self.sounds,
        )

    def plan(self, video: Path) -> DubJob:
        """The checked job of one video."""
        (job,) = plan_jobs(
            [video],
            out=self.out,
            overwrite=self.overwrite,
            report=self.report,
            options=self.options,
            seed=self.settings.seed,
            command=self.command,
        )
        return job


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Attributes:
        video: the file.
        state: how it ended.
        result: of the dub, where there was one.
        message: why it failed.
    """

    video: Path
    state: Literal["dubbed", "skipped", "failed"]
    result: "DubResult | None" = None
    message: str = ""


def find_videos(words: Iterable[Path]) -> list[Path]:
    """Files behind names, folders and patterns, each once, in order.

    A folder stands for the videos in it (not in its folders), without those that a dub has
    written; a pattern (`*`, `?`, `[..]`, `**`) for the files it fits.

    Raises:
        UserError: a folder without videos, or a pattern that fits nothing.
    """
    found: list[Path] = []
    for word in as_tuple(words, name="words"):
        if word.is_dir():
            videos = sorted(path for path in word.iterdir() if _is_input(path))
            if not videos:
                raise UserError(f"folder {word} holds no video; name another, or a file")
        elif not word.exists() and glob.has_magic(str(word)):
            videos = sorted(map(Path, glob.glob(str(word), recursive=True)))
            videos = [path for path in videos if path.is_file() and not _is_dubbed(path)]
            if not videos:
                raise UserError(f"pattern {word} fits no file; mend it, or name files")
        else:
            videos = [word]
        found += [video for video in videos if video not in found]
    return found


def check_many(videos: list[Path], recipe: Recipe) -> None:
    """Refuses what would go wrong with every file, or make two of them one.

    Raises:
        UserError: -o is no folder that can be written, or two videos share an output.
    """
    check_apart(
        videos,
        out=recipe.out,
        options=recipe.options,
        seed=recipe.settings.seed,
        report=recipe.report,
    )
    if recipe.out is not None:
        check_writable(recipe.out / "probe", overwrite=True)


def is_done(video: Path, recipe: Recipe) -> bool:
    """Whether the dubbed files that the recipe makes of a video are there."""
    target = default_out(video, recipe.out)
    num_takes, seed = recipe.options.takes, recipe.settings.seed
    takes = plan_takes(target, num_takes, seed=seed, report=recipe.report)
    return all(os.path.exists(take.out) for take in takes)


def dub_one(
    video: Path,
    recipe: Recipe,
    make_dubber: "Callable[[], Dubber]",
    *,
    on_start: Callable[[DubJob], Callable[[int], None]] | None = None,
) -> Outcome:
    """Dubs one video and says what became of it; an error is an outcome like others."""
    try:
        job = recipe.plan(video)
        on_tick = None if on_start is None else on_start(job)
        result = make_dubber().dub(job, on_tick=on_tick)
    except UserError as error:
        return Outcome(video, "failed", message=str(error))
    except Exception as error:
        # The border of one file: what is wrong with it, or with us, is told, and the rest goes on.
        log.exception("%s: unexpected error, please report it", video)
        return Outcome(video, "failed", message=f"{type(error).__name__}: {error}")
    return outcome_of(video, result)


def outcome_of(video: Path, result: "DubResult") -> Outcome:
    """The outcome of a dub that went well."""
    return Outcome(video, "dubbed", result)


def dub_in_processes(videos: list[Path], recipe: Recipe, num_jobs: int) -> Iterator[Outcome]:
    """Outcomes of videos as they end, dubbed by `num_jobs` processes with a model each."""
    context = get_context("spawn")
    with ProcessPoolExecutor(
        num_jobs, mp_context=context, initializer=_start_worker, initargs=(recipe, os.getpid())
    ) as pool:
        waiting = {pool.submit(_dub_in_worker, video): video for video in videos}
        try:
            for future in as_completed(waiting):
                video = waiting.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield Outcome(video, "failed", message="its process was killed; run it again")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: dict = {}


def _start_worker(recipe: Recipe, parent: int) -> None:
    _worker.update(recipe=recipe, parent=parent, dubber=None)


def _dub_in_worker(video: Path) -> Outcome:
    def make_dubber() -> "Dubber":
        if _worker["dubber"] is None:
            _worker["dubber"] = _worker["recipe"].make_dubber()
        return _worker["dubber"]

    return dub_one(video, _worker["recipe"], make_dubber, on_start=lambda job: _stop_as_orphan)


def _stop_as_orphan(num_ticks: int) -> None:
    """Ends the file under way when nobody waits for it any more: its parent was killed."""
    if os.getppid() != _worker["parent"]:
        raise KeyboardInterrupt


def _is_input(path: Path) -> bool:
    is_video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    return is_video and not path.name.startswith(".") and not _is_dubbed(path)


def _is_dubbed(path: Path) -> bool:
    return DUBBED in Path(path.stem).suffixes
