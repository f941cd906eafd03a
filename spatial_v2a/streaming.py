"""The streaming contract: state trees of preallocated tensors, reset, snapshot and restore.

Every stateful layer has
    init_state(batch_size, *, max_chunk, device, dtype) -> a dataclass of tensors, batch first
    forward(x, state=None, active=None)
`state=None` is the offline path in the same code. `active` is bool [B]; idle rows change nothing.
All-zero is the initial state. A step writes in place: addresses never change.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def state_tensors(state: Any) -> Iterator[Tensor]:
    """Yields every tensor of a state tree (dataclasses, lists, tuples, dicts of tensors)."""
    if isinstance(state, Tensor):
        yield state
    elif is_dataclass(state):
        for field in fields(state):
            yield from state_tensors(getattr(state, field.name))
    elif isinstance(state, dict):
        for value in state.values():
            yield from state_tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from state_tensors(value)
    elif state is not None:
        raise TypeError(f"a state tree holds tensors only, found {type(state).__name__}")


def with_tensors(state: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tree around other tensors, taken in the order of `state_tensors`."""
    if isinstance(state, Tensor):
        return next(tensors)
    if is_dataclass(state):
        parts = {f.name: with_tensors(getattr(state, f.name), tensors) for f in fields(state)}
        return type(state)(**parts)
    if isinstance(state, dict):
        return {name: with_tensors(value, tensors) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(with_tensors(value, tensors) for value in state)
    return state


def reset_(state: Any, where_B: Tensor | None = None) -> None:
    """Zeroes the rows where `where_B` (bool [B]) is True; all rows when it is None."""
    for tensor in state_tensors(state):
        if where_B is None:
            tensor.zero_()
        else:
            shape = (-1,) + (1,) * (tensor.dim() - 1)
            tensor.masked_fill_(where_B.view(shape), 0)


def snapshot(state: Any) -> list[Tensor]:
    """Copies every tensor of the tree."""
    return [tensor.clone() for tensor in state_tensors(state)]


def restore_(state: Any, saved: list[Tensor]) -> None:
    """Writes a snapshot back in place."""
    tensors = list(state_tensors(state))
    if len(tensors) != len(saved):
        raise ValueError(f"snapshot has {len(saved)} tensors, the state has {len(tensors)}")
    for tensor, copy in zip(tensors, saved, strict=True):
        tensor.copy_(copy)


def write_(target: Tensor, value: Tensor, active_B: Tensor | None = None) -> None:
    """Copies `value` into `target` in place, leaving idle rows as they are."""
    if active_B is not None:
        shape = (-1,) + (1,) * (target.dim() - 1)
        value = torch.where(active_B.view(shape), value, target)
    target.copy_(value)
