"""perception.safetensors: the compact encoders of a checkpoint folder, one prefix each, 16-bit."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spatial_v2a.errors import UserError

WEIGHTS_NAME = "perception.safetensors"
PREFIXES = ("dino", "depth", "detector")


def write_weights(folder: Path, prefix: str, model: nn.Module) -> Path:
    """Adds or replaces one encoder in the folder's file, leaving the others as they are."""
    if prefix not in PREFIXES:
        raise ValueError(f"unknown prefix {prefix!r}; choose from {', '.join(PREFIXES)}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_NAME
    tensors: dict[str, Tensor] = {}
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            others = [name for name in file.keys() if not name.startswith(f"{prefix}.")]
            tensors = {name: file.get_tensor(name) for name in others}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        value = value.to(torch.float16) if value.is_floating_point() else value
        tensors[f"{prefix}.{name}"] = value.contiguous().clone()
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    os.replace(partial, path)
    return path


def read_weights(folder: Path, prefix: str, model: nn.Module) -> None:
    """Loads one encoder from the folder's file into `model`, as float32.

    Raises:
        UserError: the file is missing, corrupt, or made for another architecture.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {WEIGHTS_NAME}; fetch the whole checkpoint again")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{prefix}.")]
            state = {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path} is corrupt ({error}); fetch the checkpoint again") from error
    if not state:
        raise UserError(f"{path} holds no {prefix} encoder; train it or set its source")
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
