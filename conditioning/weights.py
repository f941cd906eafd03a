"""The compact encoders of a checkpoint folder: 16-bit safetensors, one prefix an encoder.

A detector has a file of its own, for its licence may be another one:
    perception.safetensors       dino. and depth.
    detector-yolo.safetensors    detector.
    detector-rtdetr.safetensors  rtdetr.

Published encoders: safetensors of the hub's cache, or of a folder of the user's; nothing else.
A configuration names a repository. It is looked up in the hub's cache of this machine, where the
user has put it (`hf download owner/name`); nothing is fetched here, no name is taken for a path, no
code of a repository runs, and no pickle is opened.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spatial_v2a.bounded import read_json
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole
from spatial_v2a.models.checkpoint import DETECTORS, PERCEPTION
from spatial_v2a.tensor_files import (
    MODEL,
    allowed_bytes,
    build_within,
    check_weight,
    has_tensors,
    inside,
    load_into,
    load_network,
    num_elements,
    read_tensors,
)

WEIGHTS_NAME = f"{PERCEPTION}.safetensors"
FILE_OF = {"dino": WEIGHTS_NAME, "depth": WEIGHTS_NAME} | {
    prefix: f"{stem}.safetensors" for prefix, stem in DETECTORS.items()
}
PREFIXES = tuple(FILE_OF)


def write_weights(folder: Path, prefix: str, model: nn.Module) -> Path:
    """Adds or replaces one encoder in the folder's file, leaving the others as they are."""
    if prefix not in PREFIXES:
        raise ValueError(f"unknown prefix {prefix!r}; choose from {', '.join(PREFIXES)}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_OF[prefix]
    tensors: dict[str, Tensor] = {}
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            others = [name for name in file.keys() if not name.startswith(f"{prefix}.")]
            tensors = {name: file.get_tensor(name) for name in others}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        value = value.to(torch.float16) if value.is_floating_point() else value
        tensors[f"{prefix}.{name}"] = value.contiguous().clone()
    with written_whole(path, overwrite=True) as draft:
        save_file(tensors, draft, metadata={"format": "pt"})
    return path


def load_encoder(folder: Path, prefix: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Builds one encoder, no larger than its weights, and loads them, as float32.

    Raises:
        UserError: the file is missing, corrupt, or made for another architecture.
    """
    stem, names = _stem(folder, prefix), f"{prefix}."
    settings = f"perception.{prefix} in the configuration of {folder}"
    return load_network(build, folder, stem, prefix=names, settings=settings)


def read_weights(folder: Path, prefix: str, model: nn.Module) -> None:
    """Loads one encoder from the folder's file into `model`, as float32.

    Raises:
        UserError: as `load_encoder`.
    """
    load_into(model, encoder_tensors(folder, prefix), where=folder, prefix=f"{prefix}.")


def encoder_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The weights of one encoder, as float32.

    Raises:
        UserError: the file is missing or corrupt.
    """
    return read_tensors(folder, _stem(folder, prefix), prefix=f"{prefix}.")


def _stem(folder: Path, prefix: str) -> str:
    """Name of the weights that hold an encoder."""
    own = DETECTORS.get(prefix, PERCEPTION)
    # Until 2026-11-22 all encoders were in one file.
    stem = own if has_tensors(folder, own) else PERCEPTION
    if not has_tensors(folder, stem) or not num_elements(folder, stem, prefix=f"{prefix}."):
        own_file = ", or name your own with --detector-weights" if prefix in DETECTORS else ""
        raise UserError(
            f"{folder} has no {FILE_OF[prefix]} with a {prefix} encoder; fetch the whole checkpoint"
            f" again, train it{own_file}"
        )
    return stem


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# They would have transformers fetch a second network, of another library perhaps, or code of
# the hub that computes attention, or hand the weights to a library that packs them.
_NAMES_ANOTHER = frozenset(
    ("backbone", "use_timm_backbone", "use_pretrained_backbone")
    + ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    + ("experts_implementation", "_experts_implementation", "_experts_implementation_internal")
    + ("quantization_config", "distributed_config")
)
# No number that a network's sizes are made of is larger: a count of labels becomes names.
_MAX_NUMBER = 2**20
# Of a picture: RT-DETR lays a grid over all of it while it is built. The published ones have 640.
_MAX_SIDE = 4096
# The networks within networks that the published ones have.
_MAX_DEPTH = 8


def cached_repository(repo_id: str) -> Path:
    """Folder of a hub repository in the cache of this machine.

    Raises:
        UserError: it is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise UserError(
            f"cannot load {repo_id}: it is not in the hub's cache here, and nothing is fetched"
            f" because a configuration names it; if you want it: hf download {repo_id}"
        ) from None


def load_published(folder: Path, kinds: "Mapping[str, type[PreTrainedModel]]") -> nn.Module:
    """A network that transformers has written: its config.json and its safetensors.

    Args:
        folder: of the two.
        kinds: the classes to choose from, by the model_type that config.json names.

    Raises:
        UserError: it is not there, is another kind of network, holds no safetensors, or its
            weights are damaged or do not fit.
    """
    from huggingface_hub.errors import StrictDataclassError

    path = inside(folder, "config.json")
    data = read_json(path)
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{folder} is a {str(kind)[:50]}; use one of {', '.join(kinds)}")
    check_config(data, where=path)
    tensors = published_tensors(folder)
    budget = allowed_bytes(sum(tensor.numel() for tensor in tensors.values()))

    def build() -> nn.Module:
        try:
            config: Any = kinds[kind].config_class.from_dict(data)
        except (StrictDataclassError, AttributeError) as error:
            raise ValueError(error) from error
        # Tensors that do not fit are named below; transformers' own message names none.
        model, loading = kinds[kind].from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        # transformers would fill them with random numbers and only warn.
        if loading["missing_keys"]:
            raise ValueError(f"tensor {min(loading['missing_keys'])} is missing")
        if loading["mismatched_keys"]:
            name, found, needed = min(loading["mismatched_keys"])
            raise ValueError(f"tensor {name} has shape {[*found]}, the network needs {[*needed]}")
        return model

    model = build_within(budget, build, settings=str(path))
    # Some may have been whole numbers in the file.
    for name, tensor in model.state_dict().items():
        check_weight(name, tensor, where=folder)
    return model


def published_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a published network, as float32.

    Raises:
        UserError: there are none, or they are damaged.
    """
    if not has_tensors(folder, MODEL):
        raise UserError(
            f"{folder} holds no {MODEL}.safetensors; use a repository that does, as a pickle is"
            " never opened"
        )
    return read_tensors(folder, MODEL)


def check_config(value: Any, *, where: Path, depth: int = 0, most: int = _MAX_NUMBER) -> None:
    """Refuses settings, at whatever depth, that fetch or run something, or ask for absurd sizes."""
    if depth > _MAX_DEPTH:
        raise UserError(f"{where} is nested deeper than {_MAX_DEPTH}; use another network")
    if isinstance(value, int | float) and abs(value) > most:
        raise UserError(f"{where} asks for {value:.2g}, which no size is; use another network")
    if isinstance(value, dict):
        for name in value:
            if name in _NAMES_ANOTHER and value[name]:
                raise UserError(
                    f"{where} names what is not in it ({name}); use a network that holds all of it"
                )
            size = min(most, _MAX_SIDE) if name.endswith("image_size") else most
            check_config(value[name], where=where, depth=depth + 1, most=size)
    if isinstance(value, list):
        for part in value:
            check_config(part, where=where, depth=depth + 1, most=most)
