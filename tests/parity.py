"""Checks of the streaming contract that every stateful layer shares (used by test_parity_*)."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from spatial_v2a.models.streaming import reset_, restore_, snapshot, state_tensors

TOLERANCE = 1e-9

# step(inputs cut to some ticks, state, active) -> output [B, T, ...]
Step = Callable[[Any, Any, Tensor | None], Tensor]
NewState = Callable[[int, int], Any]  # (batch_size, max_chunk)


def take(inputs: Any, rows: slice | Tensor, ticks: slice) -> Any:
    """Cuts rows and ticks out of tensors [B, T, ...], dataclasses or tuples of them."""
    if isinstance(inputs, Tensor):
        return inputs[rows, ticks]
    if is_dataclass(inputs):
        return type(inputs)(
            **{f.name: take(getattr(inputs, f.name), rows, ticks) for f in fields(inputs)}
        )
    return tuple(take(item, rows, ticks) for item in inputs)


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Asserts equality to within TOLERANCE and names the difference."""
    difference = (actual - expected).abs().max().item()
    assert difference < TOLERANCE, f"{what}: largest difference {difference:.3g}"


def check_chunks(
    step: Step, new_state: NewState, inputs: Any, num_ticks: int, cuts: Sequence[int]
) -> None:
    """Offline equals streaming; `cuts` are chunk lengths, repeated until the end."""
    every = slice(None)
    offline = step(inputs, None, None)
    state = new_state(offline.shape[0], max(cuts))
    addresses = [tensor.data_ptr() for tensor in state_tensors(state)]
    outputs, start, turn = [], 0, 0
    while start < num_ticks:
        stop = min(start + cuts[turn % len(cuts)], num_ticks)
        outputs.append(step(take(inputs, every, slice(start, stop)), state, None))
        start, turn = stop, turn + 1
    close(torch.cat(outputs, dim=1), offline, f"chunks {list(cuts)}")
    after = [tensor.data_ptr() for tensor in state_tensors(state)]
    assert after == addresses, "a state tensor was rebound instead of written"


def check_idle_and_reset(
    step: Step, new_state: NewState, inputs: Any, num_ticks: int, *, max_chunk: int
) -> None:
    """Three streams with idle rows; the middle one is reset half way. Each equals its own run."""
    reset_tick = num_ticks // 2
    state = new_state(3, max_chunk)
    clocks, outputs = [0, 0, 0], [[], [], []]
    turn = 0
    was_reset = False
    while min(clocks) < num_ticks:
        length = 1 + turn % max_chunk
        is_active = [
            clocks[row] + length <= num_ticks and (turn + row) % (2 + row) != 0 for row in range(3)
        ]
        if not any(is_active):
            length = 1
            is_active = [clock < num_ticks for clock in clocks]
        if clocks[1] >= reset_tick and not was_reset:
            reset_(state, torch.tensor([False, True, False]))
            was_reset, reset_tick = True, clocks[1]
        starts = [min(clock, num_ticks - length) for clock in clocks]
        rows = [
            take(inputs, slice(row, row + 1), slice(starts[row], starts[row] + length))
            for row in range(3)
        ]
        out = step(_stack(rows), state, torch.tensor(is_active))
        for row in range(3):
            if is_active[row]:
                outputs[row].append(out[row : row + 1])
                clocks[row] += length
        turn += 1
    assert was_reset
    for row in range(3):
        whole = slice(0, num_ticks)
        own = step(take(inputs, slice(row, row + 1), whole), None, None)
        if row == 1:
            head = step(take(inputs, slice(1, 2), slice(0, reset_tick)), None, None)
            tail = step(take(inputs, slice(1, 2), slice(reset_tick, num_ticks)), None, None)
            own = torch.cat((head, tail), dim=1)
        close(torch.cat(outputs[row], dim=1), own, f"stream {row}")


def check_snapshot(step: Step, new_state: NewState, inputs: Any, num_ticks: int) -> None:
    """Restoring a snapshot gives what would have come without interruption; reset is fresh."""
    every, half = slice(None), num_ticks // 2
    state = new_state(3, num_ticks)
    first = step(take(inputs, every, slice(0, half)), state, None)
    saved = snapshot(state)
    expected = step(take(inputs, every, slice(half, num_ticks)), state, None)
    step(take(inputs, every, slice(0, half)), state, None)
    restore_(state, saved)
    again = step(take(inputs, every, slice(half, num_ticks)), state, None)
    close(again, expected, "after restore")
    reset_(state)
    fresh = step(take(inputs, every, slice(0, half)), state, None)
    close(fresh, first, "after reset")


def check_poison(step: Step, new_state: NewState, inputs: Any, caches: Callable) -> None:
    """Slots not yet written hold 1e4 and change nothing; `caches(state)` yields the rings."""
    every = slice(None)
    clean, poisoned = new_state(3, 2), new_state(3, 2)
    for ring in caches(poisoned):
        ring.fill_(1e4)
    for tick in range(3):
        chunk = take(inputs, every, slice(tick, tick + 1))
        close(step(chunk, poisoned, None), step(chunk, clean, None), f"poisoned tick {tick}")


def check_causal(step: Step, x_BTD: Tensor, num_ticks: int, *, sees_own_tick: bool = True) -> None:
    """d out[t] / d in[> t] is exactly 0 (and [>= t] when the own tick is hidden)."""
    x = x_BTD.clone().requires_grad_()
    out = step(x, None, None)
    for tick in range(num_ticks):
        weight = torch.linspace(1, 2, out.shape[-1], dtype=out.dtype)
        (grad,) = torch.autograd.grad((out[:, tick] * weight).sum(), x, retain_graph=True)
        first_hidden = tick + 1 if sees_own_tick else tick
        leak = grad[:, first_hidden:].abs().sum().item()
        assert leak == 0.0, f"output {tick} leaks {leak} from the future"
        if first_hidden:
            reach = grad[:, first_hidden - 1].abs().sum().item()
            assert reach > 0, f"output {tick} does not see the newest input it may see"


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], Tensor):
        return torch.cat(rows)
    if is_dataclass(rows[0]):
        names = [f.name for f in fields(rows[0])]
        return type(rows[0])(**{n: torch.cat([getattr(r, n) for r in rows]) for n in names})
    return tuple(_stack(list(items)) for items in zip(*rows, strict=True))
