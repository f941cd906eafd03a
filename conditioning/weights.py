"""The compact encoders of a checkpoint folder: 16-bit safetensors, one prefix an encoder.

A detector has a file of its own, for its licence may be another one:
    perception.safetensors       dino. and depth.
    detector-yolo.safetensors    detector.
    detector-rtdetr.safetensors  rtdetr.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole
from spatial_v2a.models.checkpoint import DETECTORS, PERCEPTION
from spatial_v2a.tensor_files import (
    has_tensors,
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
