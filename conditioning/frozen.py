"""What every frozen encoder shares: it never trains, and it is fed the same resized pictures."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spatial_v2a.conditioning.compiled import (
    CompiledNetwork,
    OpenVinoGraph,
    compile_traced,
    compiled_once,
    has_openvino,
    traced_once,
)

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Deferred:
    """A network that is built when it is first needed: where its compiled form is kept, never.

    Attributes:
        build: makes it, with its weights; imports what that takes.
        key: from `compiled.make_key`; changes with all that decides what it computes but the
            size of the pictures.
    """

    build: Callable[[], nn.Module]
    key: str


class FrozenEncoder(nn.Module):
    """An encoder whose weights take no gradient and which stays in eval mode for good.

    A subclass defines `forward(x_BCHW) -> Tensor`, `example()` and, where the network has to be
    fitted, `prepare(model)`; it calls `run` instead of itself.

    Args:
        model: the network, or how to build it.
    """

    def __init__(self, model: nn.Module | Deferred) -> None:
        super().__init__()
        # Says where the encoder is while there is no network.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self._deferred = model if isinstance(model, Deferred) else None
        # A function keeps the traced copy out of the module tree and of the state dict.
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._compiled_for = "cpu"
        # Whether the compiled copy, picture by picture, beats the network on a batch.
        self._is_faster_alone = False
        # Pictures come as rows of pixels: convolutions need not turn them around.
        self._is_channels_last = False
        super().train(False)
        if isinstance(model, nn.Module):
            self._adopt(model)

    def example(self) -> Tensor:
        """One input picture [1, 3, H, W] of the size the network runs at."""
        raise NotImplementedError

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network as it is run, of the one that was built."""
        return model

    @property
    def model(self) -> nn.Module:
        """The network, built by now."""
        if "model" not in self._modules:
            assert self._deferred is not None
            self._adopt(self._deferred.build().to(self.device))
        return self._modules["model"]

    @property
    def device(self) -> torch.device:
        """Where the network is, or will be built."""
        return self._anchor.device

    def _adopt(self, model: nn.Module) -> None:
        model = self.prepare(model).eval().requires_grad_(False)
        if self._is_channels_last:
            model = model.to(memory_format=torch.channels_last)
        self._modules["model"] = model

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Does nothing: a parent module's `train()` must not reach a frozen encoder."""
        return self

    def optimize(self) -> None:
        """Compiles the network: on the CPU for one picture at a time, on a GPU as CUDA graphs.

        PyTorch's tracer halves its time on the CPU, OpenVINO, where installed, halves it again.
        """
        if self.device.type == "cuda":
            self._optimize_for_gpu(self.example().to(self.device))
        if self.device.type != "cpu":
            return
        key = None
        if self._deferred is not None:
            key = "-".join(map(str, (self._deferred.key, *self.example().shape)))
        if has_openvino():
            graph = OpenVinoGraph(compiled_once(key, self._compile))
            self._compiled = lambda x_BCHW: graph(x_BCHW)[0].clone()
            self._is_faster_alone = True
            return
        with torch.no_grad():
            # Not optimize_for_inference: its layout conversions cost more than they save here.
            frozen = traced_once(key, lambda: torch.jit.freeze(self._trace()))
            # Batches go through the network itself, which is to round as the first of its kind.
            self._is_channels_last = True
            if "model" in self._modules:
                self.model.to(memory_format=torch.channels_last)
            self._compiled = lambda x_BCHW: frozen(x_BCHW)
            for _ in range(3):
                self.run(self.example())

    def _compile(self) -> CompiledNetwork:
        return compile_traced(self._trace(), (self.example(),))

    @torch.no_grad()
    def _trace(self) -> torch.jit.ScriptModule:
        self.model.to(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            # Shapes are fixed here, which is all that the tracer warns about.
            warnings.simplefilter("ignore")
            return torch.jit.trace(self, self.example(), check_trace=False)

    def _optimize_for_gpu(self, example: Tensor) -> None:
        graphed = GraphedNetwork(self)
        try:
            with torch.inference_mode():
                graphed(example)
        except RuntimeError as error:
            log.warning("%s runs without a CUDA graph: %s", type(self).__name__, error)
            return
        self._compiled, self._compiled_for = graphed, "cuda"

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Within, the network runs as it is written."""
        compiled, self._compiled = self._compiled, None
        try:
            yield
        finally:
            self._compiled = compiled

    def run(self, x_BCHW: Tensor) -> Tensor:
        """The network's output, through the compiled copy where that is faster."""
        kind = x_BCHW.device.type
        if self._compiled is None or kind != self._compiled_for:
            return self(x_BCHW)
        if len(x_BCHW) == 1 or kind == "cuda":
            return self._compiled(x_BCHW)
        if not self._is_faster_alone:
            return self(x_BCHW)
        return torch.cat([self._compiled(x_1CHW) for x_1CHW in x_BCHW.split(1)])


def settle_positions(embeddings: nn.Module, height: int, width: int) -> None:
    """Works the position embeddings of a DINOv2 out once, for pictures of one size.

    Left to itself it resamples them for every picture, with a filter that compilers differ in.

    Args:
        embeddings: `embeddings` of transformers' Dinov2Model or Dinov2WithRegistersModel.
        height, width: the only size of picture from now on, in pixels.
    """
    num_patches = (height // embeddings.patch_size) * (width // embeddings.patch_size)
    tokens_1ND = embeddings.position_embeddings.new_zeros(
        1, 1 + num_patches, embeddings.position_embeddings.shape[-1]
    )
    settled_1ND = embeddings.interpolate_pos_encoding(tokens_1ND, height, width)
    embeddings.register_buffer("settled_1ND", settled_1ND.detach(), persistent=False)
    embeddings.interpolate_pos_encoding = lambda *_: embeddings.settled_1ND


def resize_frames(frames_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 pictures [B, H, W, 3] with antialiasing to uint8 [B, 3, height, width]."""
    x_BCHW = frames_BHWC.permute(0, 3, 1, 2)
    if x_BCHW.shape[-2:] == (height, width):
        return x_BCHW
    return functional.interpolate(x_BCHW, (height, width), mode="bilinear", antialias=True)


def normalize_imagenet(x_BCHW: Tensor) -> Tensor:
    """uint8 0..255 to float32 with ImageNet's mean and deviation."""
    shape = (1, 3, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN, device=x_BCHW.device).view(shape)
    std = torch.tensor(IMAGENET_STD, device=x_BCHW.device).view(shape)
    return (x_BCHW.float() / 255.0 - mean) / std


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
