"""The streaming contract: state trees of preallocated tensors, reset, snapshot and restore.

Every stateful layer has
    init_state(batch_size, *, max_chunk, device, dtype) -> a dataclass of tensors, batch first
    forward(x, state=None, active=None)
`state=None` is the offline path in the same code. `active` is bool [B]; idle rows change nothing.
All-zero is the initial state. A step writes in place: addresses never change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
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
    _put(Write(target, value))


def write_ring_(
    ring_BHSE: Tensor, new_BHTE: Tensor, slots_BT: Tensor, active_B: Tensor | None = None
) -> None:
    """Writes T entries into slots of a ring in place, leaving idle rows as they are.

    Args:
        ring_BHSE: S slots of width E.
        new_BHTE: what to write.
        slots_BT: where, int64, each slot at most once.
        active_B: bool, idle rows False.
    """
    if active_B is not None:
        index = slots_BT[:, None, :, None].expand(new_BHTE.shape)
        kept_BHTE = ring_BHSE.gather(2, index)
        new_BHTE = torch.where(active_B[:, None, None, None], new_BHTE, kept_BHTE)
    _put(Write(ring_BHSE, new_BHTE.to(ring_BHSE.dtype), slots_BT))


@dataclass
class Write:
    """One write into a state: `value` into all of `target`, or into slots of a ring."""

    target: Tensor
    value: Tensor
    slots_BT: Tensor | None = None

    def carry_out(self) -> None:
        """Writes."""
        if self.slots_BT is None:
            self.target.copy_(self.value)
        else:
            index = self.slots_BT[:, None, :, None].expand(self.value.shape)
            self.target.scatter_(2, index, self.value)


_put_off: ContextVar[list[Write] | None] = ContextVar("_put_off", default=None)


@contextmanager
def writes_put_off() -> Iterator[list[Write]]:
    """Within, a step is a function without side effects: its writes are only listed.

    Whoever reads a state after writing it must ask `are_writes_put_off`. For compilers whose
    graphs cannot write their inputs.
    """
    waiting: list[Write] = []
    token = _put_off.set(waiting)
    try:
        yield waiting
    finally:
        _put_off.reset(token)


def are_writes_put_off() -> bool:
    """Whether a step runs within `writes_put_off`."""
    return _put_off.get() is not None


def _put(write: Write) -> None:
    waiting = _put_off.get()
    if waiting is None:
        write.carry_out()
    else:
        waiting.append(write)
