"""Captures work on a GPU once and replays it: one launch instead of hundreds.

What is captured reads and writes fixed addresses: inputs are copied into buffers of its own before
each replay, and the outputs are overwritten by the next one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Runs before the capture, in which libraries choose their kernels and take their workspaces.
WARMUP_RUNS = 3


def capture(function: Callable[[], tuple[Tensor, ...]]) -> tuple["torch.cuda.CUDAGraph", tuple]:
    """The graph of a function without arguments, and its outputs, which every replay fills."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARMUP_RUNS):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = tuple(function())
    return graph, outputs


class GraphedNetwork:
    """A network of one input and one output, captured once for every batch size that it meets.

    Args:
        network: on a GPU, without host reads.
        capture: as the function of this module; another one is for tests.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], *, capture: Callable = capture) -> None:
        self._network = network
        self._capture = capture
        self._captured: dict[int, tuple[Tensor, torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The network's output, in memory of its own."""
        size = len(x_BCHW)
        if size not in self._captured:
            buffer = x_BCHW.clone()
            graph, (output,) = self._capture(lambda: (self._network(buffer),))
            self._captured[size] = (buffer, graph, output)
        buffer, graph, output = self._captured[size]
        buffer.copy_(x_BCHW)
        graph.replay()
        return output.clone()
