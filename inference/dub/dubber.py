"""Dubs video files with a checkpoint: frames in, sound beside the untouched picture, tick by tick.

dubber = Dubber("stage")
result = dubber.dub(plan_jobs([Path("clip.mp4")])[0])

The ticks give sound in a spool on disk (`inference/dub/spool.py`); from it the files are made.
"""

import logging
import shlex
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import av
import numpy as np
import soundfile
from pydantic import JsonValue

from spatial_v2a.audio.stereo import StereoSummary
from spatial_v2a.conditioning.annotations import AnnotatedTick, annotated_ticks
from spatial_v2a.conditioning.detectors import GENERAL
from spatial_v2a.conditioning.nanodet import weights_path
from spatial_v2a.conditioning.track_edits import MuteGate
from spatial_v2a.config import DetectorName
from spatial_v2a.files import Outputs, cannot_write
from spatial_v2a.inference.dub.heard import HeardObjects, ObjectNotes
from spatial_v2a.inference.dub.jobs import DubJob
from spatial_v2a.inference.dub.mixing import Finish
from spatial_v2a.inference.dub.spool import Spool
from spatial_v2a.inference.dub.stems import StemRecorder, write_stems
from spatial_v2a.inference.dub.take_files import (
    FinishedTake,
    TakeNotes,
    write_take,
    write_takes_ranking,
)
from spatial_v2a.inference.engine.engine import engine_threads
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import checkpoint_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DubResult:
    """What a dub made and how long it took.

    Attributes:
        takes: the files written, in the order of their seeds.
        duration_s: length of the picture.
        wall_s: time from the first frame to the finished files.
        tick_ms: time of each tick in the model (perception, generator, decoder), milliseconds;
            on a CPU the perception of the next tick runs meanwhile, on a thread of its own.
        objects: what was in the picture, and how loud the first take was meanwhile.
        settings: all that shaped the sound, as it was used.
        warning: what to do about a picture that shows next to nothing the model knows, or nothing.
        extras: further files: the ranking of several takes, stems.
        ranking: the ranking in words, or nothing.
    """

    takes: tuple[FinishedTake, ...]
    duration_s: float
    wall_s: float
    tick_ms: np.ndarray
    objects: HeardObjects
    settings: Mapping[str, JsonValue]
    warning: str = ""
    extras: tuple[Path, ...] = ()
    ranking: str = ""

    @property
    def out(self) -> Path:
        """The file of the first take."""
        return self.takes[0].out

    @property
    def report(self) -> Path | None:
        """The pan picture of the first take."""
        return self.takes[0].report

    @property
    def stereo(self) -> StereoSummary:
        """The honest stereo figures of the first take."""
        return self.takes[0].stereo

    @property
    def real_time_factor(self) -> float:
        """Seconds of video per second of work; above 1 is faster than real time."""
        return self.duration_s / self.wall_s


class Dubber(Pipeline):
    """A pipeline that dubs one video file after another; arguments as for `Pipeline`."""

    def check(self, job: DubJob) -> None:
        """Reads the annotations of a job to its end, so that a bad line stops nothing later."""
        if job.annotations is not None:
            for _ in self._annotations_of(job):
                pass

    def dub(self, job: DubJob, *, on_tick: Callable[[int], None] | None = None) -> DubResult:
        """Writes a job's files, all of them or none.

        Args:
            job: from `plan_jobs`.
            on_tick: called with the number of ticks done.

        Raises:
            UserError: the video turns out damaged, the disk cannot take the output, or a file
                appeared under its name.
        """
        start = time.perf_counter()
        config = self.model.config.perception
        notes = TakeNotes(job, config)
        objects = self.object_notes()
        with (
            write_errors_as_user_errors(job.out),
            engine_threads(self.device),
            Outputs(overwrite=job.overwrite) as outputs,
            ExitStack() as stack,
        ):
            used = self.settings_of(job) | {"seed": self.settings.seed}
            words = ", ".join(f"{name} {value}" for name, value in used.items())
            log.info("%s: %s", job.source.path.name, words)
            outputs.follow_links(job.paths)
            sounds = [stack.enter_context(Spool(outputs, take.out)) for take in job.takes]
            recorder = None
            if job.stems is not None:
                recorder = StemRecorder(job, config, outputs, stack)
            tick_ms = self._render(job, sounds, notes, objects, recorder, on_tick)
            origin = partial(self.origin, job)
            finished = tuple(
                write_take(job, take, sound, notes, number, outputs=outputs, state_origin=origin)
                for number, (take, sound) in enumerate(zip(job.takes, sounds, strict=True))
            )
            table, extras = write_takes_ranking(job, notes, outputs)
            if recorder is not None:
                finish = finished[0].finish
                extras += write_stems(
                    job, sounds[0], recorder, finish, outputs=outputs, origin=origin(0, finish)
                )
        seen = objects.summary()
        return DubResult(
            takes=finished,
            duration_s=float(job.source.duration),
            wall_s=time.perf_counter() - start,
            tick_ms=tick_ms,
            objects=seen,
            warning=self.nothing_seen(job, seen),
            settings=used,
            extras=extras,
            ranking=table,
        )

    def origin(self, job: DubJob, number: int, finish: Finish, **more: object) -> Provenance | None:
        """The statement of origin of a job's take, or None where none is wanted.

        Args:
            job: whose file it goes into.
            number: of the take.
            finish: what was done to its mix.
            more: further settings, as JSON values.
        """
        if not job.options.provenance:
            return None
        assert self.model.folder is not None
        return Provenance(
            model=self.model.config.name,
            checkpoint_sha256=checkpoint_digest(self.model.folder),
            seed=self.settings.seed + number,
            command=job.command,
            settings=self.settings_of(job) | asdict(finish) | more,
        )

    def settings_of(self, job: DubJob) -> dict[str, JsonValue]:
        """All that shapes a job's sound besides its seed, as it is used: no value is left open."""
        # Of the mix, nothing at all is what it says of a loudness that is not asked for.
        mix = job.options.mix.model_dump(mode="json", exclude_none=True)
        edits = {} if job.edits is None else asdict(job.edits)
        annotations = (
            {} if job.annotations is None else {"annotations": job.annotations.name} | edits
        )
        return self.used_settings(job.source) | annotations | mix | {"track": job.options.track}

    def nothing_seen(self, job: DubJob, objects: HeardObjects) -> str:
        """What to do about a picture that shows next to nothing the model knows; else nothing."""
        if not objects.is_next_to_nothing or "boxes" in self.settings.without:
            return ""
        name = job.source.path.name
        if job.annotations is not None:
            return (
                f"{name}: {job.annotations} has next to no box in the time of the picture, so"
                " the sound has nothing to follow; check its times and boxes"
            )
        word = str(job.source.path)
        word = shlex.quote(f"./{word}" if word.startswith("-") else word)
        remedies = [*self._other_detectors(job), f"boxes of your own: spatial-v2a tracks {word},"
                    " write them into its file, then dub with --annotations FILE"]  # fmt: skip
        return (
            f"{name}: next to nothing was seen that has a sound, so there is nothing to follow;"
            f" try {', or '.join(remedies)}. There are sounds for: {', '.join(self._class_names)}"
        )

    def _other_detectors(self, job: DubJob) -> list[str]:
        """Options that take another detector, as far as its weights are there or can be had."""
        used = self.perceptions.name_of(job.source)
        names = []
        if used in get_args(DetectorName):
            assert self.model.folder is not None
            others = [name for name in get_args(DetectorName) if name != used]
            folder = self.model.folder
            names = [n for n in others if (folder / f"detector-{n}.safetensors").is_file()]
        words = [f"--detector {name}" for name in names]
        if used != GENERAL:
            has_weights = weights_path(GENERAL).is_file()
            first = "" if has_weights else f" (first: spatial-v2a detectors get {GENERAL})"
            words.append(f"--detector {GENERAL}{first}")
        return words

    def _render(
        self,
        job: DubJob,
        sounds: list[Spool],
        notes: TakeNotes,
        objects: ObjectNotes,
        recorder: StemRecorder | None,
        on_tick: Callable[[int], None] | None,
    ) -> np.ndarray:
        """Hears the whole video, once per sound; returns the milliseconds of every tick."""
        self.begin(
            job.source,
            annotations=None if job.annotations is None else self._annotations_of(job),
            num_takes=len(sounds),
            num_object_streams=None if recorder is None else len(recorder.sounds),
            num_ticks=job.source.num_ticks,
        )
        gates = [MuteGate() for _ in sounds]
        times_ms = array("d")
        images = job.source.ticks(max_width=self.max_width)
        with closing(self.run(images)) as ticks:
            for tick in ticks:
                seen = tick.seen
                times_ms.append(1e3 * tick.seconds)
                heard = [
                    gate.apply(audio_LC, is_muted=seen.is_muted)
                    for gate, audio_LC in zip(gates, tick.heard.mix_NLC, strict=True)
                ]
                for sound, audio_LC in zip(sounds, heard, strict=True):
                    sound.write(audio_LC)
                if recorder is not None:
                    recorder.add(seen.features, seen.boxes, tick.heard, fov_deg=seen.fov_deg)
                notes.add(seen.image_HWC, seen.features, heard)
                objects.add(seen.boxes, heard[0])
                if on_tick is not None:
                    on_tick(len(times_ms))
        for sound in sounds:
            sound.complete()
        return np.array(times_ms)

    def object_notes(self) -> ObjectNotes:
        """Takes notes of the objects of a video."""
        return ObjectNotes(self._class_names)

    @property
    def _class_names(self) -> tuple[str, ...]:
        return self.model.config.perception.class_names

    def _annotations_of(self, job: DubJob) -> Iterator[AnnotatedTick]:
        return annotated_ticks(job.annotations, self.model.config.perception, job.edits)


@contextmanager
def write_errors_as_user_errors(out: Path) -> Iterator[None]:
    """Within, what the disk or a codec refuses becomes one line that names the file."""
    try:
        yield
    except (av.error.FFmpegError, soundfile.SoundFileError, OSError) as error:
        raise cannot_write(out, error) from error
