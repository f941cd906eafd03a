"""The passes of a tick as TorchScript: the same arithmetic without Python between the operations.

A tick is some two thousand small operations; handing them out takes Python a good part of the
tick, and keeps other threads of the process from running meanwhile.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spatial_v2a.conditioning.compiled import traced_once
from spatial_v2a.inference.engine.compiled import CompiledPasses, Example, Flattener
from spatial_v2a.models.streaming import state_tensors, with_tensors


class TracedPasses(CompiledPasses):
    """Passes traced on the CPU, bit for bit what they are eagerly; about a second to make."""

    def compile(
        self, name: str, function: Callable, example: Example, weights: nn.Module
    ) -> "Traced":
        """See `CompiledPasses`."""
        return Traced(function, example(), weights, key=self.key_of(name))


class Traced:
    """A function of trees, traced for trees of these shapes; it gives the tensors of its result.

    Args:
        function, weights: as for `CompiledPasses.compile`.
        example: the trees.
        key: as for `traced_once`.
    """

    def __init__(
        self, function: Callable, example: tuple, weights: nn.Module, *, key: str | None
    ) -> None:
        self._flatten = Flattener()
        tensors = tuple(self._flatten(example))

        def trace() -> torch.jit.ScriptModule:
            flat = _Flat(function, example, weights).eval()
            with warnings.catch_warnings():
                # Shapes are those of one tick for good, which is all that the tracer warns about.
                warnings.simplefilter("ignore")
                # Not frozen: folding constants changes the rounding and saves no time here.
                return torch.jit.trace(flat, tensors, check_trace=False)

        self._graph = traced_once(key, trace)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        return self._graph(*self._flatten(args))


class _Flat(nn.Module):
    """A function of trees as a module of their tensors, which is what the tracer takes."""

    def __init__(self, function: Callable, example: tuple, weights: nn.Module) -> None:
        super().__init__()
        self.weights = weights
        self._call = lambda tensors: function(*with_tensors(example, iter(tensors)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A graph returns something: a pass that only writes hands its first argument back.
        return tuple(state_tensors(self._call(tensors))) or tensors[:1]
