"""The passes of a tick through `torch.compile`: fewer, larger kernels, minutes to make."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spatial_v2a.inference.engine.compiled import Call, CompiledPasses, Example
from spatial_v2a.models.streaming import state_tensors, with_tensors


class InductorPasses(CompiledPasses):
    """Passes compiled by TorchInductor; the samples are the eager ones to rounding."""

    def compile(self, name: str, function: Callable, example: Example, weights: nn.Module) -> Call:
        """See `CompiledPasses`."""
        return inductor(function, example())


def inductor(function: Callable, example: tuple) -> Call:
    """A function of trees compiled for trees of these shapes; arguments as for `CompiledPasses`."""

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(state_tensors(function(*with_tensors(example, iter(tensors)))))

    compiled = torch.compile(flat, dynamic=False)

    def call(*args: Any) -> tuple[Tensor, ...]:
        return compiled(*state_tensors(args))

    call(*example)  # compiles now rather than at the first tick
    return call
