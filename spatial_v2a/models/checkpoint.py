"""Checkpoint folders: config.yaml, sharded safetensors and a card; never pickle.

A folder alone rebuilds its model:
    config.yaml               every setting, with format_version
    model.safetensors         16-bit weights; model-00001-of-0000N.safetensors and an index if large
    perception.safetensors    compact encoders of patches and depth (optional, sharded alike)
    detector-yolo.safetensors, detector-rtdetr.safetensors
                              compact detectors, apart because of their licences (optional)
    card.md                   data, licence, scores
"""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from torch import Tensor

from spatial_v2a.bounded import read_text
from spatial_v2a.config import Config, config_to_yaml, load_config
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_folder
from spatial_v2a.tensor_files import MODEL, has_tensors, inside, read_tensors, write_tensors

CONFIG_FILE = "config.yaml"
CARD_FILE = "card.md"
PERCEPTION = "perception"
# Encoders by the prefix of their tensors; what has none of these is in PERCEPTION.
DETECTORS = {"detector": "detector-yolo", "rtdetr": "detector-rtdetr"}
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"})
MAX_CARD_BYTES = 1_000_000


def bundled_names() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    folder = resources.files("spatial_v2a").joinpath("bundled")
    if not folder.is_dir():
        return []
    return sorted(e.name for e in folder.iterdir() if e.joinpath(CONFIG_FILE).is_file())


def find_checkpoint(path_or_id: str | Path) -> Path:
    """Gives the local folder of a checkpoint, downloading it when a hub id is named.

    Args:
        path_or_id: a folder, a name of `bundled_names()`, or `owner/name` on the hub.

    Raises:
        UserError: nothing there, not a folder, a pickle, or the hub cannot be reached.
    """
    name, path = str(path_or_id), Path(path_or_id)
    if path.suffix in PICKLE_SUFFIXES:
        raise UserError(f"{name} is a pickle, which can run code; give a folder of safetensors")
    # Other than those of Path, these do not raise for a name that is too long.
    if os.path.isdir(path):
        return path
    if name in bundled_names():
        return Path(str(resources.files("spatial_v2a").joinpath("bundled", name)))
    if os.path.exists(path):
        raise UserError(f"{name} is a file; give the checkpoint folder that holds {CONFIG_FILE}")
    if isinstance(path_or_id, str) and name.count("/") == 1 and not name.startswith((".", "/")):
        return _download(name)
    bundled = ", ".join(bundled_names()) or "none"
    raise UserError(f"no checkpoint folder {name}; give a folder, a hub id, or one of: {bundled}")


def read_config(folder: Path, *, detector: str | None = None) -> Config:
    """Reads the settings of a checkpoint folder, after refusing pickles in it.

    Args:
        folder: of the checkpoint.
        detector: who finds the boxes, yolo or rtdetr; None is the checkpoint's own choice.

    Raises:
        UserError: a pickle, no or bad settings, an unknown detector.
    """
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UserError(f"{folder / pickles[0]} is a pickle, which can run code; remove it")
    path = inside(folder, CONFIG_FILE)
    if not path.exists():
        raise UserError(f"{path} is missing; give a complete checkpoint folder")
    config = load_config(path)
    return config if detector is None else config.with_detector(detector)


def read_card(folder: Path) -> str:
    """Text of the card, empty when the folder has none."""
    path = inside(folder, CARD_FILE)
    return read_text(path, max_bytes=MAX_CARD_BYTES) if path.exists() else ""


def read_encoders(folder: Path) -> dict[str, Tensor]:
    """Reads the weights of all compact encoders that the folder holds, by prefix and name."""
    stems = [stem for stem in (PERCEPTION, *DETECTORS.values()) if has_tensors(folder, stem)]
    return {key: tensor for stem in stems for key, tensor in read_tensors(folder, stem).items()}


def write_encoders(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes weights of compact encoders, each into the file it belongs to."""
    by_stem: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem = DETECTORS.get(key.split(".", 1)[0], PERCEPTION)
        by_stem.setdefault(stem, {})[key] = tensor
    for stem, part in by_stem.items():
        write_tensors(folder, stem, part)


def write_checkpoint(
    folder: str | Path,
    *,
    config: Config,
    tensors: Mapping[str, Tensor],
    card: str,
    perception: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a whole checkpoint folder at once, or leaves nothing behind.

    Args:
        folder: where to write; its parents are made.
        tensors, perception: weights of the model and of the compact encoders.
        card: text of card.md.
        overwrite: replace a folder that exists.

    Raises:
        UserError: the folder exists and `overwrite` is not set, or it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another name for the folder")
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists; choose another folder or ask to overwrite it")
    try:
        with written_folder(folder, overwrite=overwrite) as draft:
            (draft / CONFIG_FILE).write_text(config_to_yaml(config), "utf-8")
            (draft / CARD_FILE).write_text(card.rstrip() + "\n", "utf-8")
            write_tensors(draft, MODEL, tensors)
            if perception:
                write_encoders(draft, perception)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error}); choose a writable place") from None
    return folder


def upload_checkpoint(folder: Path, repo_id: str, *, private: bool) -> str:
    """Uploads a folder to the hub, with card.md as its front page; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot push to {repo_id} ({reason}); log in with `hf auth login`"
        ) from None
    return str(url)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    patterns = [CONFIG_FILE, CARD_FILE, "*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"'{repo_id}' is neither a folder here nor a hub repository in reach ({reason}); "
            "check the name, or download it and give the folder"
        ) from None
