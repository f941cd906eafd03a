"""Networks captured on a GPU: buffers, one capture a batch size; the capture itself needs a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spatial_v2a.conditioning.frozen import GraphedNetwork


class Replay:
    """Stands for a captured graph: runs the function again into the same outputs."""

    def __init__(self, function: Callable[[], tuple[Tensor, ...]]) -> None:
        self.function, self.outputs = function, function()

    def replay(self) -> None:
        for output, value in zip(self.outputs, self.function(), strict=True):
            output.copy_(value)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())


def pictures(*sizes: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, 8, 8, generator=random) for size in sizes]


def check(graphed: GraphedNetwork, plain: nn.Module, device: str) -> None:
    found, expected = [], []
    with torch.inference_mode():
        for x_BCHW in pictures(1, 2, 1, 2):
            found.append(graphed(x_BCHW.to(device)))
            expected.append(plain(x_BCHW.to(device)))
    # Compared at the end: no output may be overwritten by a later call.
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_buffers_and_one_capture_a_batch_size() -> None:
    captures = []

    def capture(function: Callable) -> tuple[Replay, tuple[Tensor, ...]]:
        graph = Replay(function)
        captures.append(graph)
        return graph, graph.outputs

    plain = network()
    check(GraphedNetwork(plain, capture=capture), plain, "cpu")
    assert len(captures) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, none is here")
def test_a_replay_is_the_network() -> None:
    plain = network().cuda()
    check(GraphedNetwork(plain), plain, "cuda")
