"""Many files with one model: folders and patterns, those that exist skipped, failures told apart.

A file that fails does not stop the rest, nor one that ends the process that reads it: processes of
their own dub the files, each with a model.
"""

import glob
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spatial_v2a.concepts import STAGE, Concept
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.files import check_writable, remove_leftovers
from spatial_v2a.inference.dub.jobs import (
    DubJob,
    DubOptions,
    check_apart,
    default_out,
    plan_jobs,
    plan_takes,
)
from spatial_v2a.inference.dub.workers import Died, Work, run_tasks
from spatial_v2a.inference.engine.settings import EngineSettings

if TYPE_CHECKING:
    from spatial_v2a.inference.dub.dubber import Dubber, DubResult
    from spatial_v2a.inference.engine.object_mix import Objects

log = logging.getLogger(__name__)

# How often a process says how far it is.
NEWS_S = 0.2

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
        from spatial_v2a.inference.dub.dubber import Dubber
        from spatial_v2a.inference.engine.object_mix import DEFAULT_OBJECTS

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


def dub_in_processes(
    videos: list[Path],
    recipe: Recipe,
    num_jobs: int,
    *,
    on_tick: Callable[[Path, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Outcomes of videos as they end, dubbed by `num_jobs` processes with a model each.

    Args:
        videos: the files.
        recipe: what they are dubbed with.
        num_jobs: files at once.
        on_tick: called now and then with a video, the ticks done and the ticks in all.
    """

    def show(video: Path, ticks: tuple[int, int]) -> None:
        if on_tick is not None:
            on_tick(video, *ticks)

    for video, outcome in run_tasks(videos, _make_work, recipe, num_workers=num_jobs, on_news=show):
        if isinstance(outcome, Died):
            remove_leftovers(default_out(video, recipe.out).parent)
            outcome = _killed(video, outcome)
        yield outcome


def _make_work(recipe: Recipe) -> Work:
    """What a worker does with a video; the model is loaded for the first that needs it."""
    make_dubber = cache(recipe.make_dubber)

    def work(video: Path, tell: Callable[[tuple[int, int]], None]) -> Outcome:
        def start(job: DubJob) -> Callable[[int], None]:
            told_s = 0.0

            def on_tick(num_done: int) -> None:
                nonlocal told_s
                is_last = num_done == job.source.num_ticks
                if is_last or time.monotonic() - told_s > NEWS_S:
                    told_s = time.monotonic()
                    tell((num_done, job.source.num_ticks))

            return on_tick

        return dub_one(video, recipe, make_dubber, on_start=start)

    return work


def _killed(video: Path, died: Died) -> Outcome:
    message = f"{video} ended the process that dubbed it ({died.cause}); leave it out or convert it"
    if died.cause == "SIGKILL":
        message = (
            f"the process that dubbed {video} was killed, as a system short of memory does; run it"
            " again with fewer --jobs"
        )
    return Outcome(video, "failed", message=message)


def _is_input(path: Path) -> bool:
    is_video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    return is_video and not path.name.startswith(".") and not _is_dubbed(path)


def _is_dubbed(path: Path) -> bool:
    return DUBBED in Path(path.stem).suffixes
