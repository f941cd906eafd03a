"""Weights in safetensors files, whole or split with an index: written, read within bounds, loaded.

A folder may come from a stranger. Nothing outside of it is read; a network is built only as large
as its weights are; a weight that is not finite, or larger than training makes one, is refused.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spatial_v2a.bounded import MAX_JSON_BYTES, parse_json, read_text
from spatial_v2a.errors import UserError

MODEL = "model"
# Below 16 MB, where hosts of source code begin to refuse files.
MAX_FILE_BYTES = 15_000_000
# A header has about 100 bytes a tensor; parsing one takes many times its size in memory.
MAX_HEADER_BYTES = 8_000_000
# Beyond it float32 has no bit left for anything of order one that is added to what the weight
# gives: no training ends there. The largest of the bundled weights is 4, counters aside.
MAX_WEIGHT = 2.0**24
# What a network holds besides its weights: windows, filter banks, pooling matrices.
SLACK_BYTES = 256 * 2**20
_REMEDY = "copy the checkpoint folder again"
_PAIR = "config.yaml and weights do not fit, they must come from one checkpoint"


def has_tensors(folder: Path, stem: str) -> bool:
    """Whether the folder holds weights called `stem`."""
    names = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    return any((folder / name).exists() for name in names)


def read_tensors(folder: Path, stem: str, *, prefix: str = "") -> dict[str, Tensor]:
    """Reads weights called `stem`; 16-bit tensors become float32.

    Args:
        folder: where they lie.
        stem: name of the file, or of its parts.
        prefix: only tensors whose names begin so are read; it is taken off.

    Raises:
        UserError: a file is missing, damaged or leads out of the folder; a weight is not finite
            or beyond `MAX_WEIGHT`.
    """
    tensors = {}
    for path, keys in _tensor_files(folder, stem):
        with _opened(path) as file:
            if keys is not None and keys != set(file.keys()):
                other = min(keys ^ set(file.keys()))
                raise UserError(f"{path} and its index differ in tensor '{other}'; {_REMEDY}")
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key.startswith(prefix):
                    tensor = _widen(file.get_tensor(key))
                    check_weight(key, tensor, where=path)
                    tensors[key.removeprefix(prefix)] = tensor
    return tensors


def num_elements(folder: Path, stem: str, *, prefix: str = "") -> int:
    """How many numbers the weights called `stem` hold; no tensor is read."""
    count = 0
    for path, _ in _tensor_files(folder, stem):
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118
                if key.startswith(prefix):
                    count += math.prod(file.get_slice(key).get_shape())
    return count


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes weights in 16 bits, split so that no file passes `MAX_FILE_BYTES`."""
    from huggingface_hub import split_torch_state_dict_into_shards

    stored = {key: _narrow(tensor) for key, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(
        stored, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=MAX_FILE_BYTES
    )
    for name, keys in split.filename_to_tensors.items():
        save_file({key: stored[key] for key in keys}, folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / f"{stem}.safetensors.index.json").write_text(text + "\n", "utf-8")


def check_weight(name: str, tensor: Tensor, *, where: Path | str) -> None:
    """Refuses a weight that is not finite, beyond `MAX_WEIGHT`, or a variance below zero.

    Whole numbers are counters.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    # NaN, which both of them become, compares as false.
    least, most = (float(value) for value in tensor.float().aminmax())
    if not (-MAX_WEIGHT <= least and most <= MAX_WEIGHT):
        kind = "large" if bool(tensor.isfinite().all()) else "not finite"
        raise UserError(
            f"{where}: tensor '{name}' holds a value that is {kind}, which no training leaves (at"
            f" most {MAX_WEIGHT:g}); the weights are damaged, get them again"
        )
    if name.endswith("running_var") and least < 0:
        raise UserError(
            f"{where}: tensor '{name}' holds a variance below zero, which gives no numbers; the"
            " weights are damaged, get them again"
        )


def load_network(
    build: Callable[[], nn.Module], folder: Path, stem: str, *, prefix: str = "", settings: str
) -> nn.Module:
    """Builds a network and loads its weights.

    Args:
        build: makes it with random weights.
        folder, stem, prefix: as for `read_tensors`.
        settings: where its sizes stand, for messages.

    Raises:
        UserError: the weights cannot be read, the sizes make no network, ask for more than the
            weights hold, or do not fit them.
    """
    budget = allowed_bytes(num_elements(folder, stem, prefix=prefix))
    model = build_within(budget, build, settings=settings)
    load_into(model, read_tensors(folder, stem, prefix=prefix), where=folder, prefix=prefix)
    return model


def allowed_bytes(num_elements: int) -> int:
    """How much a network of so many weights may allocate while it is built, in float32."""
    return 4 * num_elements + SLACK_BYTES


def build_within(budget_bytes: int, build: Callable[[], nn.Module], *, settings: str) -> nn.Module:
    """Builds a network of sizes that a stranger may have chosen.

    Raises:
        UserError: the sizes make no network, or one of more bytes than the budget.
    """
    try:
        with _Allocations(budget_bytes):
            return build()
    except _TooLarge:
        raise UserError(f"{settings} asks for a network larger than its weights; {_PAIR}") from None
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AssertionError) as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{settings}: these sizes make no network ({reason}); {_PAIR}") from e


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], *, where: Path | str, prefix: str = ""
) -> None:
    """Loads tensors into a module, naming the first one that does not fit.

    Args:
        module, tensors: what goes where.
        where: of the tensors, for messages.
        prefix: begins their names there.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape or kind.
    """
    wanted = module.state_dict()
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise UserError(f"{where}: tensor '{prefix}{missing[0]}' is missing; {_PAIR}")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise UserError(f"{where}: tensor '{prefix}{unknown[0]}' is unknown to this model; {_PAIR}")
    for key, tensor in tensors.items():
        name = f"{where}: tensor '{prefix}{key}'"
        if tensor.shape != wanted[key].shape:
            found, needed = tuple(tensor.shape), tuple(wanted[key].shape)
            raise UserError(f"{name} has shape {found}, the model needs {needed}; {_PAIR}")
        if tensor.is_floating_point() != wanted[key].is_floating_point():
            raise UserError(f"{name} is {tensor.dtype}, not {wanted[key].dtype}; {_PAIR}")
    module.load_state_dict(dict(tensors))


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a checkpoint folder.

    Raises:
        UserError: it is a link to a place outside, whose content is nobody's to read or to pass on.
    """
    path, root = folder / name, folder.resolve()
    # The hub's cache keeps the files of a repository beside its snapshots and links to them.
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    # Unlike Path.resolve it bears links that lead to themselves.
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(each) for each in roots):
        raise UserError(f"{path} is a link out of the folder; put the file itself there")
    return path


# What a tensor costs beside its values: sizes that ask for countless small ones end soon as well.
_OBJECT_BYTES = 32 * 1024


class _TooLarge(Exception):
    """More was asked for than there may be."""


class _Allocations(TorchFunctionMode):
    """Counts the tensors that are made within, before anything writes to them."""

    def __init__(self, budget_bytes: int) -> None:
        super().__init__()
        self._left = budget_bytes

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in _MAKERS:
            self._left -= max(made.nbytes, _OBJECT_BYTES)
            if self._left < 0:
                raise _TooLarge
        return made


_MAKERS = frozenset(
    (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye)
    + (torch.tensor, torch.arange, torch.linspace, torch.logspace, torch.hann_window)
)


def _tensor_files(folder: Path, stem: str) -> Iterable[tuple[Path, set[str] | None]]:
    """The files of some weights, each with the tensors that the index promises in it."""
    index = inside(folder, f"{stem}.safetensors.index.json")
    if not index.exists():
        return [(inside(folder, f"{stem}.safetensors"), None)]
    text = read_text(index, max_bytes=MAX_JSON_BYTES)
    try:
        data = parse_json(text, where="its text")
    except UserError as error:
        raise UserError(f"{index} is damaged: {error}") from None
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is damaged (it has no weight_map); {_REMEDY}")
    keys_of: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(_part_names(stem), name):
            raise UserError(
                f"{index} names a file outside the folder or of another kind "
                f"({str(name)[:100]!r}); do not trust it"
            )
        keys_of.setdefault(name, set()).add(key)
    return [(inside(folder, name), keys) for name, keys in sorted(keys_of.items())]


def _part_names(stem: str) -> str:
    return re.escape(stem) + r"(-\d{1,6}-of-\d{1,6})?\.safetensors"


@contextmanager
def _opened(path: Path):
    """An open safetensors file; what is wrong with it is told as a UserError."""
    if not path.exists():
        raise UserError(f"{path} is missing; {_REMEDY}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; {_REMEDY}")
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            yield file
    # Kinds of numbers that safetensors knows and PyTorch does not end in the last two.
    except (SafetensorError, OSError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged (corrupt: {error}); {_REMEDY}") from None


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
    if num_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {num_bytes} bytes")


def _narrow(tensor: Tensor) -> Tensor:
    """Storage type: float16 for matrices; vectors (norms, biases, statistics) stay exact."""
    tensor = tensor.detach().cpu().contiguous()
    is_large = tensor.is_floating_point() and tensor.dim() >= 2
    # Out of float16's range means infinity on loading: keep such a tensor as it is.
    if is_large and tensor.abs().amax() < torch.finfo(torch.float16).max:
        return tensor.to(torch.float16)
    return tensor


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
