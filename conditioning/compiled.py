"""Traced networks run by OpenVINO on one CPU thread, in about half of PyTorch's time.

It is optional (the extra `cpu`, which `make` installs); where it is missing, or where the
environment has SPATIAL_V2A_OPENVINO=0, the traced network runs in PyTorch.

Compiled networks are kept from one start to the next: $XDG_CACHE_HOME/spatial_v2a/compiled (or
~/.cache/...) holds a file for each, named by a key of everything that decides its bytes: weights,
settings, our sources, versions, processor. A file that is cut short, altered or of another user
counts as absent. The folder can be deleted any time.
"""

import ctypes
import functools
import hashlib
import importlib.util
import json
import logging
import os
import platform
import stat
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    return CompiledNetwork(_core().compile_model(model, "CPU", OPTIONS), notes)


@functools.cache
def _core() -> Any:
    """OpenVINO, once a process and never taken down.

    Its CPU plug-in gives the thread that loads it a stack for signals, and frees that memory with
    the last network: the next Ctrl-C was a segmentation fault.
    """
    import openvino

    return openvino.Core()


# Those in use, so that a second stream of the process compiles nothing.
_in_use: weakref.WeakValueDictionary[str, CompiledNetwork] = weakref.WeakValueDictionary()
_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)


def compiled_once(key: str | None, make: Callable[[], CompiledNetwork]) -> CompiledNetwork:
    """The network of a key: one in use, one that an earlier start has kept, or else a new one.

    Args:
        key: from `make_key`; None always makes a new one.
        make: compiles it.

    Raises:
        UserError: in a process forked off one that had made a graph.
    """
    check_not_forked()
    if key is None:
        return make()
    with _locks[key]:
        found = _in_use.get(key) or _import_kept(key)
        if found is None:
            found = make()
            keep_network(key, found.model.export_model().getvalue(), found.notes)
        _in_use[key] = found
        return found


_traced: dict[str, torch.jit.ScriptModule] = {}
_tracing = threading.Lock()


def traced_once(
    key: str | None, trace: Callable[[], torch.jit.ScriptModule]
) -> torch.jit.ScriptModule:
    """The traced network of a key, from whoever asked for it first.

    PyTorch never frees what it has traced, so that a second trace of the same would be memory lost.

    Args:
        key: from `make_key`; None always traces.
        trace: makes it.
    """
    if key is None:
        return trace()
    with _tracing:
        if key not in _traced:
            _traced[key] = trace()
        return _traced[key]


def _import_kept(key: str) -> CompiledNetwork | None:
    entry = kept_network(key)
    if entry is None:
        return None
    import openvino

    memory = openvino.Tensor(entry.network, shared_memory=True)
    try:
        model = _core().import_model(memory, "CPU", OPTIONS)
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
            if given is bound:
                # A state is written in place: most inputs are those of the last call.
                continue
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


# All entries together; what was used last stays.
MAX_BYTES = 2**30
# Left by a process that was killed while it wrote.
MAX_PARTIAL_AGE_S = 3600
SUFFIX, PARTIAL = ".network", ".partial"
# A file: magic, SHA-256 of the rest, length of the network, network, notes as JSON.
_MAGIC = b"spatial-v2a network 1\n\0\0"
_DIGEST_AT = len(_MAGIC)
_LENGTH_AT = _DIGEST_AT + hashlib.sha256().digest_size
_NETWORK_AT = _LENGTH_AT + 8


class Entry(NamedTuple):
    """A stored network.

    Attributes:
        network: its bytes, uint8.
        notes: what was stored with it, from JSON.
    """

    network: NDArray[np.uint8]
    notes: Any


def cache_folder() -> Path | None:
    """Where entries are, whether it exists or not; None where the user has no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "spatial_v2a" / "compiled"


def is_cache_usable() -> bool:
    """Whether this user can write entries, as far as can be told without writing one."""
    folder = cache_folder()
    if folder is None:
        return False
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def make_key(
    what: str, tensors: Iterable[tuple[str, Tensor]], *, packages: Iterable[str], **settings: Any
) -> str:
    """The key of a network: hex digits that change with everything that decides what it is.

    Args:
        what: its name.
        tensors: its weights by name, on the CPU.
        packages: our packages whose modules define it, and other distributions, whose version
            counts.
        settings: everything else, as JSON values.
    """
    facts = {
        "what": what,
        "settings": settings,
        "packages": {name: _state_of(name) for name in ("torch", "openvino", *packages)},
        "processor": _processor(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def kept_network(key: str) -> Entry | None:
    """The entry of a key, which then counts as just used; None where there is no sound one."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{key}{SUFFIX}"
    try:
        data = _read_own(path)
    except OSError:
        return None
    entry = None if data is None else _parse(data)
    if entry is None:
        log.info("%s is damaged or not yours; the network is compiled again", path)
        return None
    _touch(path)
    return entry


def keep_network(key: str, network: bytes, notes: Any) -> None:
    """Stores a network; where that fails it is compiled again at the next start, no more.

    Args:
        key: from `make_key`.
        network, notes: as in `Entry`.
    """
    folder = cache_folder()
    rest = len(network).to_bytes(8, "little"), network, json.dumps(notes).encode()
    if folder is None or sum(map(len, rest)) + _LENGTH_AT > MAX_BYTES // 2:
        return
    digest = hashlib.sha256()
    for part in rest:
        digest.update(part)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=folder, suffix=PARTIAL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines((_MAGIC, digest.digest(), *rest))
            os.replace(partial, folder / f"{key}{SUFFIX}")
        except BaseException:
            os.unlink(partial)
            raise
        _trim(folder, newest=key)
    except OSError as error:
        log.info("a compiled network is not kept: %s", error)


def _parse(data: NDArray[np.uint8]) -> Entry | None:
    if data[:_DIGEST_AT].tobytes() != _MAGIC or len(data) < _NETWORK_AT:
        return None
    digest = data[_DIGEST_AT:_LENGTH_AT].tobytes()
    if hashlib.sha256(data[_LENGTH_AT:].data).digest() != digest:
        return None
    end = _NETWORK_AT + int.from_bytes(data[_LENGTH_AT:_NETWORK_AT].tobytes(), "little")
    return Entry(data[_NETWORK_AT:end], json.loads(data[end:].tobytes()))


def _read_own(path: Path) -> NDArray[np.uint8] | None:
    """All of a file; None if it is no regular file of this user's that only they can write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        is_own = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(status.st_mode) or not is_own:
            return None
        return np.fromfile(file, dtype=np.uint8)


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError as error:
        log.debug("%s cannot be marked as used: %s", path, error)


def _trim(folder: Path, *, newest: str) -> None:
    """Removes what was used longest ago until the bound holds, and what killed processes left."""
    entries = []
    for found in os.scandir(folder):
        try:
            status = found.stat(follow_symlinks=False)
            if found.name.endswith(PARTIAL) and time.time() - status.st_mtime > MAX_PARTIAL_AGE_S:
                os.unlink(found.path)
            elif found.name.endswith(SUFFIX):
                is_newest = found.name == f"{newest}{SUFFIX}"
                entries.append((is_newest, status.st_mtime_ns, status.st_size, found.path))
        except FileNotFoundError:
            continue  # another process trims too
    num_bytes = sum(size for _, _, size, _ in entries)
    for _, _, size, path in sorted(entries):
        if num_bytes <= MAX_BYTES:
            return
        Path(path).unlink(missing_ok=True)
        num_bytes -= size


@functools.cache
def _state_of(package: str) -> str:
    """Of one of ours a digest of the modules directly in it, of another its version."""
    if package.split(".")[0] != "spatial_v2a":
        try:
            return version(package)
        except PackageNotFoundError:
            return "absent"
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations is not None, package
    digest = hashlib.sha256()
    for folder in found.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """What machine code may rest on: the model and, on Linux, the instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.startswith(wanted))
