"""The frozen perception as one object: pictures in, `FrameFeatures` out, tick by tick or at once.

Legend: B streams, T ticks, H W picture rows and columns.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from spatial_v2a.concepts import Concept, SoundMap, vocabulary_names
from spatial_v2a.conditioning.boxes import Box, BoxTokenBuilder, frame_features
from spatial_v2a.conditioning.compiled import OPTIONS, make_key
from spatial_v2a.conditioning.detections import (
    BoxDetector,
    Detections,
    cut_out,
    join_zoomed,
    region_of,
)
from spatial_v2a.conditioning.encoders import (
    DepthEncoder,
    DinoEncoder,
    build_depth,
    build_dino,
    load_depth,
    load_dino,
)
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.conditioning.rtdetr import RtDetrDetector, build_rtdetr, load_published_rtdetr
from spatial_v2a.conditioning.scene import CameraTurn, SceneCuts
from spatial_v2a.conditioning.sounding import WIDTH as WORLD_MOTION_WIDTH
from spatial_v2a.conditioning.sounding import Sounding, as_concepts
from spatial_v2a.conditioning.tracker import BoxTracker, TrackPersistence
from spatial_v2a.conditioning.weights import cached_repository, encoder_tensors, load_encoder
from spatial_v2a.conditioning.yolo import YoloDetector, build_yolo11, load_published_yolo11
from spatial_v2a.config import BoxSettings, PerceptionConfig
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.features import FrameFeatures
from spatial_v2a.geometry import slide_turn_deg
from spatial_v2a.models.conditioner import PerceptionShapes
from spatial_v2a.processes import use_one_thread_in_forks

CUES = ("dino", "depth", "boxes")
EXTRACT_BATCH = 32


class _Place(NamedTuple):
    """A picture among those before it.

    Attributes:
        tick: its number within its scene.
        is_cut: the scene begins with it, and another came before.
        slide: how far it slid to the right, as a share of its width.
    """

    tick: int
    is_cut: bool
    slide: float


class _Stream:
    """Memory of one stream: its tracker, its boxes' history, and what it saw last.

    Attributes:
        cuts: says where another scene begins.
        turn: says how far the picture slid.
        num_ticks: pictures of this scene so far.
        nearness_HW: the last depth grid.
        boxes: those of the last tick.
        turn_deg: how far the camera turned to the left since the tick before.
        tracker, persistence, builder: make boxes of detections and tokens of boxes.
        sounding: says which things a general detector's boxes are heard, or None.
        stage_classes: the generator's classes of the own detector's, or None where they are one.

    Args:
        config: sizes and thresholds.
        boxes: settings of the detector.
        is_general: whether the detector knows things of any world and not the sounding classes.
    """

    def __init__(self, config: PerceptionConfig, boxes: BoxSettings, *, is_general: bool) -> None:
        self.cuts = SceneCuts(threshold=config.scene_cut_threshold)
        self.turn = CameraTurn()
        self.num_ticks = 0
        self.nearness_HW: NDArray | None = None
        self.boxes: list[Box] = []
        self.turn_deg = 0.0
        # A crowd's far ones are as real as its near ones, whose boxes are surer.
        sure_share = {"sure_share": 0.0} if is_general else {}
        self.tracker = BoxTracker(new_track_score=boxes.new_track_score, **sure_share)
        self.persistence = TrackPersistence(persistence_s=config.persistence_s, **sure_share)
        knows_concepts = config.sounds == "concepts"
        self.sounding = Sounding(knows_concepts=knows_concepts) if is_general else None
        self.stage_classes = config.stage_classes if knows_concepts and not is_general else None
        self.builder = BoxTokenBuilder(max_boxes=config.max_boxes)

    def reset(self) -> None:
        self.num_ticks = 0
        self.cuts.reset()
        self.turn.reset()
        self.forget_scene()
        self.tracker.reset()
        if self.sounding is not None:
            self.sounding.reset()

    def place(self, frame_HWC: Tensor) -> _Place:
        """Where the next picture stands among those before it."""
        is_cut, slide = self.cuts.step(frame_HWC), self.turn.step(frame_HWC)
        if self.sounding is not None:
            if is_cut:
                self.sounding.reset()
            self.sounding.look(frame_HWC)
        tick = 0 if is_cut else self.num_ticks
        self.num_ticks = tick + 1
        return _Place(tick, is_cut, slide)

    def forget_scene(self) -> None:
        """Forgets what was shown; ids of tracks go on."""
        self.nearness_HW, self.boxes, self.turn_deg = None, [], 0.0
        self.tracker.end_tracks()
        self.persistence.reset()
        self.builder.reset()


class Perception:
    """Frozen encoders and the per-stream trackers behind them.

    A box that vanishes is held for up to `config.persistence_s` (`conditioning/tracker.py`). At
    a cut to another scene (`conditioning/scene.py`) all of this is forgotten, and the features
    say so.

    Args:
        config: sizes and thresholds.
        dino, depth, detector: frozen encoders; None leaves that stream absent.
        sounds: what the classes of a general detector sound like; None where the detector knows
            the generator's own classes.
    """

    def __init__(
        self,
        config: PerceptionConfig,
        *,
        dino: DinoEncoder | None,
        depth: DepthEncoder | None,
        detector: BoxDetector | None,
        sounds: SoundMap | None = None,
    ) -> None:
        self.config = config
        self.sounds = sounds
        self.dino = dino
        self.depth = depth
        self.detector = detector
        self.init_state(1)

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        config: PerceptionConfig,
        *,
        cues: Iterable[str] = CUES,
        device: torch.device | str = "cpu",
        general: BoxDetector | None = None,
        overrides: Mapping[str, Concept | None] | None = None,
        detector_weights: Path | None = None,
    ) -> "Perception":
        """Loads compact encoders from a checkpoint folder, published ones from the hub's cache.

        Args:
            folder: holds perception.safetensors (unused when every encoder has a source).
            config: settings the weights were trained with.
            cues: which of dino, depth, boxes to load; the others are absent.
            device: where the encoders run.
            detector_weights: the user's own, in place of those of the folder.
            general: finds the boxes instead of the checkpoint's own detector, in any world. The
                compact encoders know one game only: then they are left out.
            overrides: what things sound like (`parse_sounds`).

        Raises:
            UserError: weights are missing, corrupt, not finite or of another shape; an override
                names what the detector does not see; a generator that does not know the sounding
                classes.
        """
        use_one_thread_in_forks()
        wanted, folder = set(as_tuple(cues, name="cues")), Path(folder)
        if unknown := wanted - set(CUES):
            raise ValueError(f"unknown cues {sorted(unknown)}; choose from {CUES}")
        sounds = None
        if general is not None:
            if config.boxes.vocabulary != "stage":
                raise UserError(
                    f"this checkpoint hears the classes of {config.boxes.vocabulary}, not the"
                    " sounding ones; leave --detector out"
                )
            sounds = SoundMap(general.names, overrides)
            published = {"dino": config.dino.source, "depth": config.depth.source}
            wanted -= {name for name, source in published.items() if source is None}
        dino = _load_dino(folder, config) if "dino" in wanted else None
        depth = _load_depth(folder, config) if "depth" in wanted else None
        detector = general
        if general is None and "boxes" in wanted:
            detector = _load_detector(folder, config, detector_weights)
        for encoder in (dino, depth, detector):
            if encoder is not None:
                encoder.to(device)
                encoder.optimize()
        return cls(config, dino=dino, depth=depth, detector=detector, sounds=sounds)

    def to(self, device: torch.device | str) -> "Perception":
        """Moves the encoders; features stay on the CPU."""
        for encoder in (self.dino, self.depth, self.detector):
            if encoder is not None:
                encoder.to(device)
        return self

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Within, the encoders run as they are written, which is slower."""
        with ExitStack() as stack:
            for encoder in (self.dino, self.depth, self.detector):
                if encoder is not None:
                    stack.enter_context(encoder.uncompiled())
            yield

    @property
    def shapes(self) -> PerceptionShapes:
        """Shapes of the features."""
        return self.config.shapes

    @property
    def max_image_width(self) -> int:
        """Pictures wider than this, in pixels, gain nothing."""
        if self.sounds is None:
            return self.config.max_image_width
        settings = self.box_settings
        return max(settings.image_height, settings.image_width, WORLD_MOTION_WIDTH)

    @property
    def cues(self) -> tuple[str, ...]:
        """The streams that are present."""
        present = {"dino": self.dino, "depth": self.depth, "boxes": self.detector}
        return tuple(name for name, encoder in present.items() if encoder is not None)

    @property
    def boxes_B(self) -> tuple[tuple[Box, ...], ...]:
        """Every stream's boxes of its last tick, held ones behind, also those without a slot."""
        return tuple(tuple(stream.boxes) for stream in self._streams)

    @property
    def turn_deg_B(self) -> tuple[float, ...]:
        """How far the camera of every stream turned to the left in its last tick, degrees."""
        return tuple(stream.turn_deg for stream in self._streams)

    def init_state(self, batch_size: int) -> None:
        """Prepares for `batch_size` streams, each with fresh memory."""
        self._streams = [self._new_stream() for _ in range(batch_size)]

    def _new_stream(self) -> _Stream:
        return _Stream(self.config, self.box_settings, is_general=self.sounds is not None)

    @property
    def box_settings(self) -> BoxSettings:
        """Settings of the detector: a general one brings its own."""
        if self.sounds is None or self.detector is None:
            return self.config.boxes
        return self.detector.settings

    def reset(self, where_B: Tensor | None = None) -> None:
        """Forgets the past of the streams where `where_B` (bool [B]) is True; of all when None."""
        chosen = [True] * len(self._streams) if where_B is None else where_B.tolist()
        for stream, is_chosen in zip(self._streams, chosen, strict=True):
            if is_chosen:
                stream.reset()

    def step(self, frames_BHWC: Tensor | NDArray, *, fov_deg: float | None = None) -> FrameFeatures:
        """Features [B, 1] of the next tick of every stream.

        Args:
            frames_BHWC: uint8 RGB pictures [B, H, W, 3].
            fov_deg: horizontal field of view in degrees; None takes the configured one.
        """
        if isinstance(frames_BHWC, np.ndarray):
            frames_BHWC = torch.from_numpy(frames_BHWC.copy())
        if len(frames_BHWC) != len(self._streams):
            raise ValueError(
                f"{len(frames_BHWC)} pictures for {len(self._streams)} streams; call init_state"
            )
        pairs = zip(self._streams, frames_BHWC, strict=True)
        places = [stream.place(frame) for stream, frame in pairs]
        encoded = self._encode(frames_BHWC, [place.tick for place in places])
        features = [
            self._features(stream, fov_deg, place, *one)
            for stream, place, one in zip(self._streams, places, encoded, strict=True)
        ]
        return _concatenate(features, dim=0)

    def extract(
        self, frames_THWC: Iterable[NDArray], *, fov_deg: float | None = None
    ) -> FrameFeatures:
        """Features [1, T] of a whole clip: what `step` gives one by one, encoders in batches.

        Args:
            frames_THWC: uint8 RGB pictures of one size in order, as an array or an iterable.
            fov_deg: as in `step`.
        """
        features = [features for features, _ in self.look(frames_THWC, fov_deg=fov_deg)]
        if not features:
            raise ValueError("no picture to extract features from")
        return _concatenate(features, dim=1)

    def look(
        self, frames_THWC: Iterable[NDArray], *, fov_deg: float | None = None
    ) -> Iterator[tuple[FrameFeatures, tuple[Box, ...]]]:
        """Every tick of a clip as `step` gives it, from fresh memory, encoders in batches.

        Args:
            frames_THWC: uint8 RGB pictures of one size in order, as an array or an iterable.
            fov_deg: as in `step`.

        Yields:
            Features [1, 1] and the boxes that they were made of, in the order that `slots_of`
            wants: those seen and those held, also those that found no slot.
        """
        stream = self._new_stream()
        for frames in _batches(frames_THWC):
            frames_BHWC = torch.from_numpy(np.stack(frames))
            places = [stream.place(frame) for frame in frames_BHWC]
            encoded = self._encode(frames_BHWC, [place.tick for place in places])
            for place, one in zip(places, encoded, strict=True):
                yield self._features(stream, fov_deg, place, *one), tuple(stream.boxes)

    def fingerprint(self, stream: str) -> str:
        """Sixteen hex digits that change with the settings or the weights behind a stream."""
        encoder = {"dino": self.dino, "depth": self.depth, "boxes": self.detector}[stream]
        if encoder is None:
            raise ValueError(f"stream {stream} is absent")
        settings = self.config.model_dump(mode="json", by_alias=True)
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, tensor in encoder.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _encode(
        self, frames_BHWC: Tensor, ticks: list[int]
    ) -> list[tuple[Tensor | None, NDArray | None, Detections | None]]:
        """Runs the encoders; per picture its patches [N, D], nearness grid and detections.

        Args:
            frames_BHWC: pictures.
            ticks: number of each within its scene. Detector and depth look at every so-many-th
                picture, in turns where they can; where one does not, its result is None.
        """
        nothing = [None] * len(frames_BHWC)
        depth_every = self.config.depth.every_ticks
        sees_depth = [tick == 0 or (tick + 1) % depth_every == 0 for tick in ticks]
        dino = nothing if self.dino is None else self.dino.encode(frames_BHWC).cpu()
        depth = found = nothing
        if self.depth is not None:
            depth = _of_some(self.depth.encode, frames_BHWC, sees_depth)
        if self.detector is not None:
            found = self._find(frames_BHWC, ticks)
        grids = [None if grid is None else grid.cpu().numpy() for grid in depth]
        return list(zip(dino, grids, found, strict=True))

    def _find(self, frames_BHWC: Tensor, ticks: list[int]) -> list[Detections | None]:
        """What the detector finds in the pictures it looks at, None for the others."""
        settings = self.box_settings
        every, weight = settings.every_ticks, settings.zoom_weight
        sees = [tick % every == 0 for tick in ticks]
        found = _of_some(self.detector.detect, frames_BHWC, sees)
        if self.sounds is not None:
            found = [None if one is None else as_concepts(one, self.sounds) for one in found]
        if weight == 0.0 or not any(sees):
            return found
        height, width = frames_BHWC.shape[1:3]
        regions = [region_of(tick // every, height=height, width=width) for tick in ticks]
        parts = [cut_out(frame, region) for frame, region in zip(frames_BHWC, regions, strict=True)]
        near = _of_some(self.detector.detect, torch.stack(parts), sees)
        return [
            None if whole is None else join_zoomed(whole, part, region, weight=weight)
            for whole, part, region in zip(found, near, regions, strict=True)
        ]

    def _features(
        self,
        stream: _Stream,
        fov_deg: float | None,
        place: _Place,
        dino_ND: Tensor | None,
        nearness_HW: NDArray | None,
        found: Detections | None,
    ) -> FrameFeatures:
        fov_deg = self.config.default_fov_deg if fov_deg is None else fov_deg
        if place.is_cut:
            stream.forget_scene()
        else:
            stream.turn_deg = slide_turn_deg(place.slide, fov_deg)
        if nearness_HW is None:
            nearness_HW = stream.nearness_HW
        stream.nearness_HW = nearness_HW
        tokens = None
        if self.detector is not None:
            view = {"fov_deg": fov_deg, "nearness_HW": nearness_HW}
            seen, silenced = stream.tracker.step(found), []
            if stream.sounding is not None:
                told = stream.sounding.step(seen, fov_deg=fov_deg)
                seen, silenced = told.heard, told.silent
            elif stream.stage_classes is not None:
                classes = stream.stage_classes
                seen = [replace(box, class_index=int(classes[box.class_index])) for box in seen]
            boxes = stream.boxes = stream.persistence.step(
                seen, turn_deg=stream.turn_deg, silenced=silenced, **view
            )
            tokens = [stream.builder.step(boxes, **view)]
        grid_1HW = None if nearness_HW is None else nearness_HW[None]
        features = frame_features(self.config, tokens=tokens, nearness_THW=grid_1HW, num_ticks=1)
        features.is_cut_BT[:] = place.is_cut
        if dino_ND is None:
            return features
        present = torch.ones(1, 1, dtype=torch.bool)
        return replace(features, dino_BTND=dino_ND.clone()[None, None], has_dino_BT=present)


def _batches(frames_THWC: Iterable[NDArray]) -> Iterator[list[NDArray]]:
    """Pictures in lists of EXTRACT_BATCH, the last one shorter."""
    frames = iter(frames_THWC)
    while batch := list(islice(frames, EXTRACT_BATCH)):
        yield batch


def _of_some(
    encode: Callable[[Tensor], Sequence[Any]], frames_BHWC: Tensor, wanted: list[bool]
) -> list[Any]:
    """What `encode` gives for the wanted pictures, None for the others."""
    if not any(wanted):
        return [None] * len(wanted)
    results = iter(encode(frames_BHWC if all(wanted) else frames_BHWC[torch.tensor(wanted)]))
    return [next(results) if is_wanted else None for is_wanted in wanted]


def _concatenate(parts: list[FrameFeatures], *, dim: int) -> FrameFeatures:
    names = parts[0].__dataclass_fields__
    return FrameFeatures(**{n: torch.cat([getattr(p, n) for p in parts], dim) for n in names})


def _load_dino(folder: Path, config: PerceptionConfig) -> DinoEncoder:
    settings = config.dino
    if settings.source is not None:
        return DinoEncoder(settings, load_dino(settings))
    return DinoEncoder(settings, _compact(folder, "dino", lambda: build_dino(settings), settings))


def _load_depth(folder: Path, config: PerceptionConfig) -> DepthEncoder:
    settings = config.depth
    if settings.source is not None:
        return DepthEncoder(settings, load_depth(settings))
    return DepthEncoder(
        settings, _compact(folder, "depth", lambda: build_depth(settings), settings)
    )


def _load_detector(folder: Path, config: PerceptionConfig, weights: Path | None) -> BoxDetector:
    num_classes, names = config.num_classes, vocabulary_names(config.boxes.vocabulary)
    settings = config.boxes
    if config.boxes_from == "rtdetr":
        if weights is None and settings.source is not None:
            weights = cached_repository(settings.source)
        if weights is not None:
            model = load_published_rtdetr(weights)
        else:
            model = _compact(
                folder, "rtdetr", lambda: build_rtdetr(settings, num_classes=num_classes), settings
            )
        return RtDetrDetector(settings, model, names=names)
    if weights is not None:
        model = load_published_yolo11(weights)
    else:
        model = _compact(
            folder, "detector", lambda: build_yolo11(settings, num_classes=num_classes), settings
        )
    return YoloDetector(settings, model, names=names)


def _compact(
    folder: Path, prefix: str, build: Callable[[], nn.Module], settings: BaseModel
) -> Deferred:
    """An encoder of a checkpoint folder, whose weights are read now and fitted when needed."""
    key = make_key(
        f"encoder {prefix}",
        sorted(encoder_tensors(folder, prefix).items()),
        packages=("spatial_v2a", "spatial_v2a.conditioning", "transformers", "ultralytics"),
        settings=settings.model_dump(mode="json"),
        options=OPTIONS,
    )
    return Deferred(lambda: load_encoder(folder, prefix, build), key)
