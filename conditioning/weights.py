"""The compact encoders of a checkpoint folder: 16-bit safetensors, one prefix an encoder.

A detector has a file of its own, for its licence may be another one:
    perception.safetensors       dino. and depth.
    detector-yolo.safetensors    detector.
    detector-rtdetr.safetensors  rtdetr.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spatial_v2a.checkpoint import DETECTORS, PERCEPTION
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole

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


def read_weights(folder: Path, prefix: str, model: nn.Module) -> None:
    """Loads one encoder from the folder's file into `model`, as float32.

    Raises:
        UserError: the file is missing, corrupt, or made for another architecture.
    """
    own = folder / FILE_OF[prefix]
    # Until 2026-11-22 all encoders were in one file.
    path = own if own.is_file() else folder / WEIGHTS_NAME
    try:
        state = _read(path, prefix) if path.is_file() else {}
    except SafetensorError as error:
        raise UserError(f"{path} is corrupt ({error}); fetch the checkpoint again") from error
    if not state:
        raise UserError(
            f"{folder} has no {own.name} with a {prefix} encoder; fetch the whole checkpoint"
            " again, train it, or set its source"
        )
    wanted = model.state_dict()
    wrong = set(wanted) ^ set(state) or {
        name for name, tensor in wanted.items() if tensor.shape != state[name].shape
    }
    if wrong:
        raise UserError(
            f"{path}: {prefix} weights do not fit the configuration (first: {min(wrong)}); "
            f"use the config.yaml they were trained with"
        )
    model.load_state_dict(state)


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{prefix}.")]
        return {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in names}
