"""The passes of a tick as CUDA graphs: one launch each instead of hundreds.

A captured pass reads and writes fixed addresses: its state stays where it is, everything else is
copied into buffers of its own before each replay.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spatial_v2a.conditioning.frozen import capture
from spatial_v2a.inference.engine.compiled import CompiledPasses, Example, Flattener, is_state
from spatial_v2a.models.streaming import state_tensors, with_tensors


class GraphedPasses(CompiledPasses):
    """Passes captured on a GPU for one number of streams; a replay equals the eager pass.

    Arguments as for `Passes`. Not yet run on a GPU.
    """

    def compile(
        self, name: str, function: Callable, example: Example, weights: nn.Module
    ) -> "_Graphed":
        """See `CompiledPasses`."""
        return _Graphed(function, example())


class _Graphed:
    def __init__(self, function: Callable, example: tuple) -> None:
        self._flatten = Flattener()
        # The state itself, copies of all else.
        inputs = tuple(
            tree
            if is_state(tree)
            else with_tensors(tree, (tensor.clone() for tensor in state_tensors(tree)))
            for tree in example
        )
        self._buffers = self._flatten.changing(inputs)
        self._graph, self._outputs = capture(lambda: tuple(state_tensors(function(*inputs))))

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        for buffer, value in zip(self._buffers, self._flatten.changing(args), strict=True):
            buffer.copy_(value)
        self._graph.replay()
        return self._outputs
