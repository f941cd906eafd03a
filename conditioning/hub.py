"""Published encoders: safetensors of the hub's cache, or of a folder of the user's; nothing else.

A configuration names a repository. It is looked up in the hub's cache of this machine, where the
user has put it (`hf download owner/name`); nothing is fetched here, no name is taken for a path, no
code of a repository runs, and no pickle is opened.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spatial_v2a.bounded import read_json
from spatial_v2a.errors import UserError
from spatial_v2a.tensor_files import (
    MODEL,
    allowed_bytes,
    build_within,
    check_weight,
    has_tensors,
    inside,
    read_tensors,
)

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
# No whole number that a network's sizes are made of is larger: a count of labels becomes names.
_MAX_WHOLE_NUMBER = 2**20
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
    _check_config(data, where=path)
    if not has_tensors(folder, MODEL):
        raise UserError(
            f"{folder} holds no {MODEL}.safetensors; use a repository that does, as a pickle is"
            " never opened"
        )
    tensors = read_tensors(folder, MODEL)
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


def _check_config(value: Any, *, where: Path, depth: int = 0) -> None:
    """Refuses settings, at whatever depth, that fetch or run something, or ask for absurd sizes."""
    if depth > _MAX_DEPTH:
        raise UserError(f"{where} is nested deeper than {_MAX_DEPTH}; use another network")
    if isinstance(value, int) and abs(value) > _MAX_WHOLE_NUMBER:
        raise UserError(f"{where} asks for {value:.2g}, which no size is; use another network")
    if isinstance(value, dict):
        for name in value:
            if name in _NAMES_ANOTHER and value[name]:
                raise UserError(
                    f"{where} names what is not in it ({name}); use a network that holds all of it"
                )
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_config(part, where=where, depth=depth + 1)
