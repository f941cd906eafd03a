"""Compiled networks kept from one start to the next, in the user's cache folder.

$XDG_CACHE_HOME/spatial_v2a/compiled (or ~/.cache/...) holds a file for each network, named by a key
of everything that decides its bytes: weights, settings, our sources, versions, processor. A file
that is cut short, altered or of another user counts as absent. The folder can be deleted any time.
"""

import functools
import hashlib
import importlib.util
import json
import logging
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

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


def is_usable() -> bool:
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


def load(key: str) -> Entry | None:
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


def store(key: str, network: bytes, notes: Any) -> None:
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
