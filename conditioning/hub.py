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
    has_tensors,
    inside,
    read_tensors,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# They would have transformers fetch a second network, of another library perhaps.
_NAMES_ANOTHER = ("backbone", "use_timm_backbone", "use_pretrained_backbone")


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
    path = inside(folder, "config.json")
    data = read_json(path)
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{folder} is a {str(kind)[:50]}; use one of {', '.join(kinds)}")
    for name in _NAMES_ANOTHER:
        if data.get(name):
            raise UserError(f"{path} names another network ({name}); use one that holds all of it")
    if not has_tensors(folder, MODEL):
        raise UserError(
            f"{folder} holds no {MODEL}.safetensors; use a repository that does, as a pickle is"
            " never opened"
        )
    tensors = read_tensors(folder, MODEL)
    budget = allowed_bytes(sum(tensor.numel() for tensor in tensors.values()))

    def build() -> nn.Module:
        config: Any = kinds[kind].config_class.from_dict(data)
        model, loading = kinds[kind].from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
        # transformers would fill them with random numbers and only warn.
        if loading["missing_keys"]:
            raise ValueError(f"tensor {min(loading['missing_keys'])} is missing")
        return model

    return build_within(budget, build, settings=str(path))
