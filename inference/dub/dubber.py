"""Dubs video files with a checkpoint: frames in, sound beside the untouched picture, tick by tick.

dubber = Dubber("stage")
result = dubber.dub(plan_jobs([Path("clip.mp4")])[0])

The ticks give sound in a spool on disk (`inference/dub/spool.py`); from it the files are made.
"""

import logging
import shlex
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import av
import numpy as np
import soundfile
import torch
from pydantic import JsonValue

from spatial_v2a.audio.stereo import StereoSummary
from spatial_v2a.concepts import Concept
from spatial_v2a.conditioning import compile_cache
from spatial_v2a.conditioning.annotations import AnnotatedTick, annotated_ticks, overlay_tick
from spatial_v2a.conditioning.box_fields import Box
from spatial_v2a.conditioning.bundle import Perception
from spatial_v2a.conditioning.detector_choice import GENERAL, STAGE, Perceptions
from spatial_v2a.conditioning.openvino_graph import has_openvino
from spatial_v2a.conditioning.published_weights import weights_path
from spatial_v2a.conditioning.track_edits import MuteGate
from spatial_v2a.conditioning.vocabulary import vocabulary_names
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.files import Outputs, cannot_write
from spatial_v2a.inference.dub.finishing import Finish
from spatial_v2a.inference.dub.heard import HeardObjects, ObjectNotes
from spatial_v2a.inference.dub.jobs import DubJob
from spatial_v2a.inference.dub.spool import Spool
from spatial_v2a.inference.dub.stems import StemRecorder, write_stems
from spatial_v2a.inference.dub.take_files import (
    FinishedTake,
    TakeNotes,
    write_take,
    write_takes_ranking,
)
from spatial_v2a.inference.engine.ahead import ahead
from spatial_v2a.inference.engine.engine import (
    Engine,
    EngineSettings,
    engine_threads,
    used_settings,
)
from spatial_v2a.inference.engine.object_mix import (
    DEFAULT_OBJECTS,
    NUM_OBJECT_STREAMS,
    ObjectMix,
    Objects,
)
from spatial_v2a.inference.engine.object_streams import ObjectStreams
from spatial_v2a.inference.engine.stream import folder_of
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import checkpoint_digest
from spatial_v2a.model import SpatialV2A
from spatial_v2a.perception_config import DetectorName

# Compiling the engine takes about as long as it saves over so many ticks (two CPU cores).
MIN_TICKS_TO_COMPILE = 60

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


@dataclass(frozen=True)
class SeenTick:
    """What is seen in one tick.

    Attributes:
        image_HWC: the picture.
        features: [1, 1].
        boxes: those that the features hold, and those that found no slot.
        fov_deg: horizontal field of view.
        is_muted: whether every known object is silenced.
        seconds: time that perception took.
    """

    image_HWC: np.ndarray
    features: FrameFeatures
    boxes: tuple[Box, ...]
    fov_deg: float
    is_muted: bool
    seconds: float


class Dubber:
    """A loaded checkpoint that dubs one file after another.

    Args:
        checkpoint: its name or folder, or the model itself, which stays on its device and with
            its detector.

    Attributes:
        model: the model.
        perception: its frozen encoders.
        settings: how sound is drawn.
        fov_deg: horizontal field of view assumed for the pictures, degrees.
        objects: how several objects in the picture are heard.
        perceptions: the perception of every video.
    """

    def __init__(
        self,
        checkpoint: str | Path | SpatialV2A = "stage",
        *,
        settings: EngineSettings | None = None,
        device: str = "auto",
        fov_deg: float | None = None,
        objects: Objects = DEFAULT_OBJECTS,
        detector: str = STAGE,
        sounds: Mapping[str, Concept | None] | None = None,
        detector_weights: Path | None = None,
    ) -> None:
        if objects not in get_args(Objects):
            raise UserError(f"objects {objects} is unknown; use {' or '.join(get_args(Objects))}")
        self.settings = settings or EngineSettings()
        self.objects = objects
        own = detector if detector in get_args(DetectorName) else None
        if not isinstance(checkpoint, SpatialV2A):
            where = resolve_device(device)
            self.model = SpatialV2A.from_pretrained(checkpoint, detector=own).to(where)
            self.model.detector_weights = detector_weights
        elif own in (None, checkpoint.config.perception.boxes_from):
            self.model = checkpoint
        else:
            raise UserError(
                f"detector {own} is not the one that the model was loaded with; load it with"
                f" from_pretrained(..., detector={own!r})"
            )
        self.device = self.model.latent_mean_D.device.type
        config = self.model.config.perception
        self.perceptions = Perceptions(
            folder_of(self.model),
            config,
            detector=STAGE if own else detector,
            overrides=sounds,
            device=self.device,
            detector_weights=self.model.detector_weights,
        )
        self.fov_deg = config.default_fov_deg if fov_deg is None else fov_deg
        if not 1 <= self.fov_deg <= 175:
            raise UserError(f"field of view {self.fov_deg:g} is not in 1..175 degrees; change it")
        self._class_names = vocabulary_names(config.boxes.vocabulary)
        self._engines: dict[tuple[int, int, bool], Engine] = {}
        # Asked for so far, of all files.
        self._num_ticks = 0

    @property
    def perception(self) -> Perception:
        """The perception where no video decides."""
        return self.perceptions.default

    def check(self, job: DubJob) -> None:
        """Reads the annotations of a job to its end, so that a bad line stops nothing later."""
        if job.annotations is not None:
            for _ in annotated_ticks(job.annotations, self.model.config.perception, job.edits):
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
        used = self.used_settings(job) | {"seed": self.settings.seed}
        words = ", ".join(f"{name} {value}" for name, value in used.items())
        log.info("%s: %s", job.source.path.name, words)
        notes = TakeNotes(job, config)
        objects = self.object_notes()
        with (
            write_errors_as_user_errors(job.out),
            Outputs(overwrite=job.overwrite) as outputs,
            ExitStack() as stack,
        ):
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
            settings=self.used_settings(job) | asdict(finish) | more,
        )

    def used_settings(self, job: DubJob) -> dict[str, JsonValue]:
        """All that shapes a job's sound besides its seed, as it is used: no value is left open."""
        # Of the mix, nothing at all is what it says of a loudness that is not asked for.
        mix = job.options.mix.model_dump(mode="json", exclude_none=True)
        edits = {} if job.edits is None else asdict(job.edits)
        annotations = (
            {} if job.annotations is None else {"annotations": job.annotations.name} | edits
        )
        return (
            used_settings(self.model, self.settings)
            | {
                "detector": self.perceptions.name_of(job.source),
                "objects": "apart" if self._is_apart else "together",
                "fov_deg": self.fov_deg,
            }
            | annotations
            | mix
            | {"track": job.options.track}
        )

    @property
    def _is_apart(self) -> bool:
        # Who does not see boxes cannot tell objects apart.
        return self.objects == "apart" and "boxes" not in self.settings.without

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
        mix = self.object_mix(len(sounds), num_ticks=job.source.num_ticks, recorder=recorder)
        gates = [MuteGate() for _ in sounds]
        times_ms = array("d")
        ticks = self.perceive(job)
        with engine_threads(self.device), closing(ticks):
            for tick in ticks:
                begin = time.perf_counter()
                sound_of_tick = mix.step(tick.features, tick.boxes)
                times_ms.append(1e3 * (tick.seconds + time.perf_counter() - begin))
                heard = [
                    gate.apply(audio_LC, is_muted=tick.is_muted)
                    for gate, audio_LC in zip(gates, sound_of_tick.mix_NLC, strict=True)
                ]
                for sound, audio_LC in zip(sounds, heard, strict=True):
                    sound.write(audio_LC)
                if recorder is not None:
                    recorder.add(tick.features, tick.boxes, sound_of_tick, fov_deg=tick.fov_deg)
                notes.add(tick.image_HWC, tick.features, heard)
                objects.add(tick.boxes, heard[0])
                if on_tick is not None:
                    on_tick(len(times_ms))
        for sound in sounds:
            sound.complete()
        return np.array(times_ms)

    def object_notes(self) -> ObjectNotes:
        """Takes notes of the objects of a video."""
        return ObjectNotes(self._class_names)

    def object_mix(
        self, num_takes: int, *, num_ticks: int, recorder: StemRecorder | None = None
    ) -> ObjectMix:
        """What makes of ticks their sound in every take, as if it were new.

        Args:
            num_takes: take number n draws from seed + n.
            num_ticks: how many will be heard.
            recorder: wants an object stream for each of its sounds.
        """
        num_object_streams = NUM_OBJECT_STREAMS if self._is_apart else 0
        if recorder is not None:
            num_object_streams = len(recorder.sounds)
        num_streams = 1 + num_object_streams
        self._num_ticks += num_ticks
        engine = self._engine(num_takes * num_streams, streams_per_noise=num_streams)
        object_streams = ObjectStreams(num_object_streams)
        return ObjectMix(engine, object_streams, num_takes=num_takes, is_apart=self._is_apart)

    def _engine(self, num_streams: int, *, streams_per_noise: int) -> Engine:
        """An engine as if it were new; each kind is made once, for that takes seconds."""
        is_compiled = self._pays_to_compile()
        kind = (num_streams, streams_per_noise, is_compiled)
        if kind not in self._engines:
            self._engines[kind] = Engine(
                self.model,
                num_streams=num_streams,
                settings=self.settings,
                streams_per_noise=streams_per_noise,
                is_compiled=is_compiled,
            )
        self._engines[kind].reset()
        return self._engines[kind]

    def _pays_to_compile(self) -> bool:
        """Whether compiling the engine saves more time than it takes.

        What is kept for the next start always does; else a clip has to be long enough.
        """
        if self.device != "cpu" or self.settings.weights != "float32":
            return True
        is_kept = has_openvino() and compile_cache.is_usable()
        return is_kept or self._num_ticks >= MIN_TICKS_TO_COMPILE

    def perceive(
        self, job: DubJob, *, ticks: range | None = None
    ) -> Generator[SeenTick, None, None]:
        """What is seen in each tick, from fresh memory; to be closed.

        Args:
            job: from `plan_jobs`.
            ticks: those that are wanted; None is all.
        """
        perception = self.perceptions.of(job.source)
        perception.init_state(1)
        seen = self._perceive(perception, job, ticks or range(job.source.num_ticks))
        # A second core sees the next tick while the first hears this one.
        return seen if self.device == "cuda" else ahead(seen)

    def _perceive(
        self, perception: Perception, job: DubJob, ticks: range
    ) -> Generator[SeenTick, None, None]:
        """Ticks as they are seen; decoding does not count among their seconds."""
        annotations = None
        if job.annotations is not None:
            settings = self.model.config.perception
            annotations = _hold_last(annotated_ticks(job.annotations, settings, job.edits))
        for number, image_HWC in enumerate(job.source.ticks(max_width=perception.max_image_width)):
            if number >= ticks.stop:
                return
            told = None if annotations is None else next(annotations)
            if number < ticks.start:
                continue
            begin = time.perf_counter()
            frames_BHWC = torch.from_numpy(image_HWC)[None]
            features = perception.step(frames_BHWC, fov_deg=self.fov_deg)
            boxes, fov_deg, is_muted = perception.boxes_B[0], self.fov_deg, False
            if told is not None:
                features = overlay_tick(features, told, self.model.config.perception)
                boxes, fov_deg, is_muted = told.boxes, told.fov_deg, told.is_muted
            seconds = time.perf_counter() - begin
            yield SeenTick(image_HWC, features, boxes, fov_deg, is_muted, seconds)


@contextmanager
def write_errors_as_user_errors(out: Path) -> Iterator[None]:
    """Within, what the disk or a codec refuses becomes one line that names the file."""
    try:
        yield
    except (av.error.FFmpegError, soundfile.SoundFileError, OSError) as error:
        raise cannot_write(out, error) from error


def resolve_device(name: str) -> str:
    """The device behind `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` without a usable GPU, or an unknown name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no usable GPU; use cpu or auto")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is unknown; use auto, cpu or cuda")
    return name


def _hold_last(items: Iterator[AnnotatedTick]) -> Iterator[AnnotatedTick]:
    for item in items:
        yield item
    while True:
        yield item
