"""Traced networks run by OpenVINO on one CPU thread, in about half of PyTorch's time.

It is optional (the extra `cpu`, which `make` installs); where it is missing, or where the
environment has SPATIAL_V2A_OPENVINO=0, the traced network runs in PyTorch.
"""

import ctypes
import functools
import importlib.util
import logging
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from spatial_v2a.conditioning import compile_cache
from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from openvino import CompiledModel, Model

log = logging.getLogger(__name__)

SWITCH = "SPATIAL_V2A_OPENVINO"
Weights = Literal["float32", "int8"]
# Smaller matrices stay in a cache, and their scales would weigh more.
MIN_INT8_WEIGHTS = 65536
# Float32 throughout, whatever narrower type the processor would be faster in.
OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
}


def has_openvino() -> bool:
    """Whether OpenVINO is installed and not switched off."""
    return os.environ.get(SWITCH) != "0" and importlib.util.find_spec("openvino") is not None


@dataclass(eq=False)
class CompiledNetwork:
    """A network compiled for this processor; any number of graphs run it.

    Attributes:
        model: OpenVINO's.
        notes: what whoever runs it has to know about it, as JSON values.
        memory: what it was read from and points into.
    """

    model: "CompiledModel"
    notes: Any = None
    memory: Any = None


def compile_traced(
    traced: torch.jit.ScriptModule,
    example: tuple[Tensor, ...],
    *,
    weights: Weights = "float32",
    notes: Any = None,
) -> CompiledNetwork:
    """Compiles a traced network of fixed shapes for this processor, which takes seconds.

    Args:
        traced: result of `torch.jit.trace`; every output is a tensor.
        example: its inputs, in the shapes and types of every later call. OpenVINO reckons float64
            in float32.
        weights: int8 keeps large matrices in 8 bit, with a scale for each output, and multiplies
            in 8 bit: less memory to read, about half a percent of error in each product.
        notes: see `CompiledNetwork`.

    Raises:
        UserError: in a process forked off one that had made a graph.
    """
    check_not_forked()
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Not `openvino.convert_model`, which reports its use to a server.
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=example)
    loaded = frontend.load(decoder)  # lives on `decoder`, which has to outlast `convert`
    model = frontend.convert(loaded)
    model.reshape({i: list(tensor.shape) for i, tensor in enumerate(example)})
    if weights == "int8":
        _quantize(model)
    return CompiledNetwork(openvino.Core().compile_model(model, "CPU", OPTIONS), notes)


# Those in use, so that a second stream of the process compiles nothing.
_in_use: weakref.WeakValueDictionary[str, CompiledNetwork] = weakref.WeakValueDictionary()
_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)


def compiled_once(
    key: str | None, make: Callable[[], CompiledNetwork], *, is_kept: bool = True
) -> CompiledNetwork:
    """The network of a key: one in use, one that an earlier start has kept, or else a new one.

    Args:
        key: from `compile_cache.make_key`; None always makes a new one.
        make: compiles it.
        is_kept: whether the next start may find it on disk.

    Raises:
        UserError: in a process forked off one that had made a graph.
    """
    check_not_forked()
    if key is None:
        return make()
    with _locks[key]:
        found = _in_use.get(key) or (_import_kept(key) if is_kept else None)
        if found is None:
            found = make()
            if is_kept:
                compile_cache.store(key, found.model.export_model().getvalue(), found.notes)
        _in_use[key] = found
        return found


def _import_kept(key: str) -> CompiledNetwork | None:
    entry = compile_cache.load(key)
    if entry is None:
        return None
    import openvino

    memory = openvino.Tensor(entry.network, shared_memory=True)
    try:
        model = openvino.Core().import_model(memory, "CPU", OPTIONS)
    except RuntimeError as error:
        log.info("a kept network is compiled again: %s", error)
        return None
    return CompiledNetwork(model, entry.notes, (entry, memory))


class OpenVinoGraph:
    """Runs a compiled network on one thread.

    Graphs of one network share its weights, and wait for one another.

    Raises:
        UserError: made or called in a process forked off one that had made a graph.
    """

    def __init__(self, network: CompiledNetwork) -> None:
        check_not_forked()
        import openvino

        self._network = network
        compiled = network.model
        self._request = compiled.create_infer_request()
        _keep_in_children()
        _graphs.add(self)
        self._wrap = lambda tensor: openvino.Tensor(tensor.numpy(), shared_memory=True)
        self._inputs: list[Tensor | None] = [None] * len(compiled.inputs)
        self._outputs = []
        for index in range(len(compiled.outputs)):
            made = torch.from_numpy(self._request.get_output_tensor(index).data.copy())
            self._request.set_output_tensor(index, self._wrap(made))
            self._outputs.append(made)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs, in memory that the next call overwrites."""
        check_not_forked()
        for index, (given, bound) in enumerate(zip(inputs, self._inputs, strict=True)):
            tensor = given.contiguous()
            if bound is None or tensor.data_ptr() != bound.data_ptr():
                self._inputs[index] = tensor
                self._request.set_input_tensor(index, self._wrap(tensor))
        self._request.infer()
        return tuple(self._outputs)

    def keep(self) -> None:
        """Lets the compiled network live until the process ends."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._request))


# The process in which OpenVINO runs: its threads exist in no other one.
_home: int | None = None
_graphs: weakref.WeakSet[OpenVinoGraph] = weakref.WeakSet()


def check_not_forked() -> None:
    """Refuses a process that was forked off one with graphs, where OpenVINO would wait for ever.

    Raises:
        UserError: this is such a process.
    """
    global _home
    _home = _home or os.getpid()
    if os.getpid() != _home:
        raise UserError(
            "this process was forked after a network had been compiled with OpenVINO, which does"
            ' not survive a fork; start processes with multiprocessing.get_context("spawn"), fork'
            f" before the first stream is opened, or set {SWITCH}=0 (slower) and open a new stream"
        )


@functools.cache
def _keep_in_children() -> None:
    """Freeing a graph waits for its threads as well, so that a forked process would never exit."""
    os.register_at_fork(after_in_child=lambda: [graph.keep() for graph in _graphs])


def _quantize(model: "Model") -> None:
    """Puts large constant matrices into 8 bit, in place."""
    from openvino import opset13

    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        constant = product.input_value(1).get_node()
        if constant.get_type_name() != "Constant":
            continue
        weight = constant.data
        if weight.ndim != 2 or weight.size < MIN_INT8_WEIGHTS:
            continue
        inner = 1 if product.get_attributes()["transpose_b"] else 0
        scale = np.maximum(np.abs(weight).max(axis=inner, keepdims=True) / 127, 1e-12)
        small = opset13.constant(np.round(weight / scale).astype(np.int8))
        whole = opset13.multiply(
            opset13.convert(small, "f32"), opset13.constant(scale.astype(np.float32))
        )
        product.input(1).replace_source_output(whole.output(0))
