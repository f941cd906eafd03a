"""From picture to sound, tick by tick: opens a checkpoint with its perception, and runs it.

    pipeline = Pipeline("stage")
    pipeline.begin()
    tick = pipeline.step(frame_HWC)     # uint8 [H, W, 3] in, tick.audio_LC float32 [1600, 2] out

`step` is `hear(look(frame))`; `run` does both for many pictures, on a CPU beside each other.
Legend: H W picture rows and columns, C colours or channels, L samples, N takes, D latent width.
"""

import copy
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from spatial_v2a.concepts import Concept
from spatial_v2a.conditioning.annotations import AnnotatedTick, overlay_tick
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.compiled import has_openvino, is_cache_usable
from spatial_v2a.conditioning.detectors import STAGE, Perceptions
from spatial_v2a.conditioning.perception import CUES, Perception
from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.config import DetectorName
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.ahead import ahead
from spatial_v2a.inference.engine.engine import (
    NUM_CPU_THREADS,
    Engine,
    EngineSettings,
    engine_threads,
)
from spatial_v2a.inference.engine.object_mix import (
    DEFAULT_OBJECTS,
    NUM_OBJECT_STREAMS,
    Heard,
    ObjectMix,
    Objects,
)
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import find_checkpoint, read_config

# Compiling the engine takes about as long as it saves over so many ticks (two CPU cores).
MIN_TICKS_TO_COMPILE = 60
MIN_FOV_DEG, MAX_FOV_DEG = 1, 175


@dataclass(frozen=True)
class Seen:
    """What is seen in one tick.

    Attributes:
        image_HWC: the picture.
        features: [1, 1].
        boxes: those that the features hold, and those that found no slot.
        fov_deg: horizontal field of view.
        turn_deg: how far the camera turned to the left since the tick before.
        is_muted: whether every known object is silenced.
        seconds: time that perception took.
    """

    image_HWC: NDArray[np.uint8]
    features: FrameFeatures
    boxes: tuple[Box, ...]
    fov_deg: float
    turn_deg: float
    is_muted: bool
    seconds: float


@dataclass(frozen=True)
class Tick:
    """One tick from picture to sound.

    Attributes:
        seen: what was seen.
        heard: its sound in every take, and what each object's part of it is.
        seconds: time in the model: perception, generator, decoder.
    """

    seen: Seen
    heard: Heard
    seconds: float

    @property
    def audio_LC(self) -> NDArray[np.float32]:
        """The sound of the first take, float32 [1600, 2], about -1..1."""
        return self.heard.mix_NLC[0]


class Pipeline:
    """A loaded checkpoint with its perception; after `begin` it hears one picture after another.

    Args:
        checkpoint: folder, bundled name, hub id, or a model that came from one.
        settings: how sound is drawn.
        device: auto, cpu or cuda; a model that is given stays where it is.
        fov_deg: horizontal field of view of the pictures in degrees; None is the checkpoint's own.
        objects: whether several objects in the picture are heard each by a stream of its own, and
            summed, or all by one stream.
        detector: who finds the boxes: auto looks which one fits the video, stage is the
            checkpoint's own, yolo and rtdetr name it; or a general one (`vocabulary_names`).
        sounds: what things sound like (`parse_sounds`), for a general detector.
        detector_weights: the user's own for the checkpoint's detector; None is the checkpoint's,
            or where a model is given what it names itself.
        is_live: pictures come as time goes by: a general detector looks at smaller ones.
        is_compiled: whether the engine is compiled; None where it saves more time than it takes.
        streams: of perception to load, of dino, depth and boxes.
        hears: False opens perception alone: `look` works, `hear` does not.
        perception: the loaded encoders, in place of those in the checkpoint's folder.

    Attributes:
        settings: as given.
        fov_deg, objects: the same, but may be changed before `begin`.
        model: the model.
        device: cpu or cuda.
        perceptions: the perception of every video.
        perception: that of the pictures since `begin`.
        mix: makes the sound since `begin`, which makes it.

    Raises:
        UserError: missing or damaged checkpoint, an unusable device, an option out of range.
    """

    model: SpatialV2A
    mix: ObjectMix

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
        is_live: bool = False,
        is_compiled: bool | None = None,
        cues: tuple[str, ...] = CUES,
        hears: bool = True,
        perception: Perception | None = None,
    ) -> None:
        if objects not in get_args(Objects):
            raise UserError(f"objects {objects} is unknown; use {' or '.join(get_args(Objects))}")
        self.settings = settings or EngineSettings()
        self.objects = objects
        self._is_compiled = is_compiled
        own = detector if detector in get_args(DetectorName) else None
        if isinstance(checkpoint, SpatialV2A):
            self.model = checkpoint
            config = checkpoint.config.perception
            if own not in (None, config.boxes_from):
                raise UserError(
                    f"detector {own} is not the one that the model was loaded with; load it with"
                    f" from_pretrained(..., detector={own!r})"
                )
            detector_weights = detector_weights or checkpoint.detector_weights
            self.device = checkpoint.latent_mean_D.device.type
            folder = checkpoint.folder if perception else folder_of(checkpoint)
        else:
            self.device = resolve_device(device)
            if hears:
                with engine_threads(self.device):
                    model = SpatialV2A.from_pretrained(checkpoint, detector=own)
                self.model = model.to(self.device)
                self.model.detector_weights = detector_weights
                folder, config = self.model.folder, self.model.config.perception
            else:
                folder = find_checkpoint(checkpoint)
                config = read_config(folder, detector=own).perception
        if perception is not None:
            config = perception.config
        self.perceptions = Perceptions(
            folder or Path(),
            config,
            detector=STAGE if own else detector,
            overrides=sounds,
            cues=cues,
            device=self.device,
            detector_weights=detector_weights,
            is_live=is_live,
            _loaded={} if perception is None else {STAGE: perception},
        )
        self.fov_deg = config.default_fov_deg if fov_deg is None else fov_deg
        if not MIN_FOV_DEG <= self.fov_deg <= MAX_FOV_DEG:
            raise UserError(
                f"field of view {self.fov_deg:g} is not in {MIN_FOV_DEG}..{MAX_FOV_DEG} degrees;"
                " change it"
            )
        self._perception: Perception | None = None
        self._annotations: Iterator[AnnotatedTick] | None = None
        self._engines: dict[tuple[int, int, bool], Engine] = {}
        # Asked for so far, of all files.
        self._num_ticks = 0

    @property
    def perception(self) -> Perception:
        """The perception of the pictures since `begin`; before it, where no video decides."""
        return self._perception or self.perceptions.default

    @property
    def max_width(self) -> int:
        """Pictures wider than this, in pixels, gain nothing."""
        return self.perception.max_image_width

    @property
    def is_apart(self) -> bool:
        """Whether objects are heard apart: who does not see boxes cannot tell them apart."""
        return self.objects == "apart" and "boxes" not in self.settings.without

    def with_settings(self, **changes: object) -> Self:
        """The same model and perception, drawn by other settings; begun anew."""
        twin = copy.copy(self)
        twin.settings = self.settings.model_copy(update=changes)
        twin._engines = {}
        return twin

    def begin(
        self,
        source: VideoSource | None = None,
        *,
        annotations: Iterator[AnnotatedTick] | None = None,
        num_takes: int = 1,
        num_object_streams: int | None = None,
        num_ticks: int | None = None,
    ) -> None:
        """Forgets everything: the next picture is the first.

        Args:
            source: the video the pictures are of, where there is one; `auto` chooses by it.
            annotations: boxes and depth of every tick, in place of what is detected; the last one
                holds.
            num_takes: take number n draws from seed + n.
            num_object_streams: streams for single objects, heard or not; None is as many as it
                takes to hear objects apart.
            num_ticks: how many will be heard; None is without end.
        """
        self.look_at(source, annotations=annotations)
        if num_object_streams is None:
            num_object_streams = NUM_OBJECT_STREAMS if self.is_apart else 0
        num_streams = 1 + num_object_streams
        self._num_ticks += MIN_TICKS_TO_COMPILE if num_ticks is None else num_ticks
        engine = self.engine(num_takes * num_streams, streams_per_noise=num_streams)
        self.mix = ObjectMix(engine, num_takes=num_takes, is_apart=self.is_apart)

    def look_at(
        self,
        source: VideoSource | None = None,
        *,
        annotations: Iterator[AnnotatedTick] | None = None,
    ) -> None:
        """`begin` for who only looks; arguments as there."""
        self._perception = self.perceptions.of(source)
        self._perception.init_state(1)
        self._annotations = None if annotations is None else _hold_last(annotations)

    def engine(self, num_streams: int, *, streams_per_noise: int = 1) -> Engine:
        """An engine as if it were new; each kind is made once, for that takes seconds."""
        is_compiled = self._pays_to_compile() if self._is_compiled is None else self._is_compiled
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

    def step(self, image_HWC: NDArray[np.uint8]) -> Tick:
        """The next picture, uint8 RGB [H, W, 3], and its sound."""
        return self.hear(self.look(image_HWC))

    def look(self, image_HWC: NDArray[np.uint8]) -> Seen:
        """What is seen in the next picture; the first half of `step`."""
        assert self._perception is not None, "begin comes first"
        told = None if self._annotations is None else next(self._annotations)
        start_s = perf_counter()
        features = self._perception.step(image_HWC[None], fov_deg=self.fov_deg)
        boxes, fov_deg = self._perception.boxes_B[0], self.fov_deg
        if told is not None:
            features = overlay_tick(features, told, self.perceptions.config)
            boxes, fov_deg = told.boxes, told.fov_deg
        return Seen(
            image_HWC=image_HWC,
            features=features,
            boxes=boxes,
            fov_deg=fov_deg,
            turn_deg=self._perception.turn_deg_B[0],
            is_muted=told is not None and told.is_muted,
            seconds=perf_counter() - start_s,
        )

    def hear(self, seen: Seen) -> Tick:
        """The sound of what `look` saw; the second half of `step`."""
        start_s = perf_counter()
        heard = self.mix.step(seen.features, seen.boxes)
        return Tick(seen, heard, seen.seconds + perf_counter() - start_s)

    def follow(self, seen: Seen, x_D: Tensor) -> None:
        """Takes a tick of sound that stands already into the history, as `ObjectMix.follow`."""
        self.mix.follow(seen.features, seen.boxes, x_D)

    def restart_noise(self) -> None:
        """Begins the noise anew; the history stays."""
        self.mix.restart_noise()

    def run(self, images: Iterable[NDArray[np.uint8]]) -> Generator[Tick, None, None]:
        """A tick for each picture; to be closed."""
        with closing(self.seen(images)) as seen:
            for one in seen:
                yield self.hear(one)

    def seen(
        self, images: Iterable[NDArray[np.uint8]], *, ticks: range | None = None
    ) -> Generator[Seen, None, None]:
        """What is seen in each picture; to be closed. Until then PyTorch runs on one thread.

        Args:
            images: uint8 RGB [H, W, 3], from tick 0 on.
            ticks: those that are wanted; None is all.
        """
        looks = self._looks(images, ticks)
        with engine_threads(self.device):
            # A second core sees the next tick while the first hears this one.
            with closing(looks if self.device == "cuda" else ahead(looks)) as seen:
                yield from seen

    def _looks(
        self, images: Iterable[NDArray[np.uint8]], ticks: range | None
    ) -> Generator[Seen, None, None]:
        for number, image_HWC in enumerate(images):
            if ticks is not None and number >= ticks.stop:
                return
            if ticks is None or number >= ticks.start:
                yield self.look(image_HWC)
            elif self._annotations is not None:
                next(self._annotations)

    def used_settings(self, source: VideoSource | None = None) -> dict[str, JsonValue]:
        """All that shapes the sound besides the seed, as it is used: no value is left open."""
        sampler, chosen = self.model.config.sampler, self.settings
        is_cpu = self.device == "cpu"
        return chosen.model_dump(mode="json", exclude={"seed"}) | {
            "nfe": sampler.nfe if chosen.nfe is None else chosen.nfe,
            "guidance": sampler.guidance if chosen.guidance is None else chosen.guidance,
            "device": self.device,
            "threads": NUM_CPU_THREADS if is_cpu else torch.get_num_threads(),
            "detector": self.perceptions.name_of(source),
            "objects": "apart" if self.is_apart else "together",
            "fov_deg": self.fov_deg,
        }

    def _pays_to_compile(self) -> bool:
        """Whether compiling the engine saves more time than it takes.

        What is kept for the next start always does; else there has to be enough to hear.
        """
        if self.device != "cpu" or self.settings.weights != "float32":
            return True
        is_kept = has_openvino() and is_cache_usable()
        return is_kept or self._num_ticks >= MIN_TICKS_TO_COMPILE


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


def folder_of(model: SpatialV2A) -> Path:
    """The checkpoint folder that a model came from, which holds its encoders.

    Raises:
        UserError: it came from none.
    """
    if model.folder is None:
        raise UserError(
            "this model comes from no checkpoint folder, so it has no encoders; save it with"
            " save_pretrained and load it with from_pretrained"
        )
    return model.folder


def _hold_last(items: Iterator[AnnotatedTick]) -> Iterator[AnnotatedTick]:
    for item in items:
        yield item
    while True:
        yield item
