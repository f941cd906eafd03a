"""The passes of a tick as CUDA graphs: one launch each instead of hundreds.

A captured pass reads and writes fixed addresses: its state stays where it is, everything else is
copied into buffers of its own before each replay.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spatial_v2a.conditioning.frozen import capture
from spatial_v2a.inference.engine.compiled import CompiledPasses, Example
from spatial_v2a.inference.engine.inductor import inductor
from spatial_v2a.inference.engine.passes import EngineState
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.streaming import state_tensors, with_tensors


class GraphedPasses(CompiledPasses):
    """Passes captured on a GPU for one number of streams; a replay equals the eager pass.

    Args:
        is_inductor: captures what `torch.compile` made of each pass.
        others: as for `Passes`.
    """

    def __init__(self, model: SpatialV2A, *, is_inductor: bool = False, **others: Any) -> None:
        super().__init__(model, **others)
        self._is_inductor = is_inductor

    def compile(
        self, name: str, function: Callable, example: Example, weights: nn.Module
    ) -> "_Graphed":
        """See `CompiledPasses`."""
        trees = example()
        return _Graphed(inductor(function, trees) if self._is_inductor else function, trees)


class _Graphed:
    def __init__(self, function: Callable, example: tuple) -> None:
        inputs = tuple(_own(tree) for tree in example)
        self._buffers = tuple(_changing(inputs))
        self._graph, self._outputs = capture(lambda: tuple(state_tensors(function(*inputs))))

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        for buffer, value in zip(self._buffers, _changing(args), strict=True):
            buffer.copy_(value)
        self._graph.replay()
        return self._outputs


def _own(tree: Any) -> Any:
    """A copy of a tree of inputs; the state itself where the tree is one."""
    if isinstance(tree, EngineState):
        return tree
    return with_tensors(tree, (tensor.clone() for tensor in state_tensors(tree)))


def _changing(trees: tuple) -> list[Tensor]:
    """The tensors that differ from call to call: all but the state's."""
    inputs = tuple(tree for tree in trees if not isinstance(tree, EngineState))
    return list(state_tensors(inputs))
