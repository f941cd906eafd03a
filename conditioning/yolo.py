"""YOLO11 adapter: pictures in, scored boxes out. Besides training, the only user of ultralytics.

Legend: B pictures, N anchors.
"""

import copy
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import Tensor, nn

from spatial_v2a.conditioning.detections import BoxDetector, FullyConvolutionalDetector
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.config import DetectorSettings
from spatial_v2a.errors import UserError
from spatial_v2a.tensor_files import check_weight


def import_ultralytics(module: str) -> ModuleType:
    """Imports a module of ultralytics without its side effects.

    Its settings go to a cache folder, it neither installs packages nor reports usage, and the
    environment is left as it was.
    """
    with _quiet_environment():
        return importlib.import_module(module)


@contextmanager
def _quiet_environment() -> Iterator[None]:
    before = dict(os.environ)
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spatial_v2a"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix="spatial_v2a-"))
        os.environ["YOLO_CONFIG_DIR"] = str(folder)
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def build_yolo11(settings: DetectorSettings, *, num_classes: int) -> nn.Module:
    """The compact YOLO11 of `settings` with random weights (ultralytics' DetectionModel)."""
    tasks = import_ultralytics("ultralytics.nn.tasks")
    architecture = Path(tasks.__file__).parents[1] / "cfg/models/11/yolo11.yaml"
    layout = copy.deepcopy(yaml.safe_load(architecture.read_text(encoding="utf-8")))
    layout["scales"] = {"c": [settings.depth_multiple, settings.width_multiple, 1024]}
    layout["scale"] = "c"
    layout["reg_max"] = settings.num_distance_bins
    return tasks.DetectionModel(layout, ch=3, nc=num_classes, verbose=False)


# What a file that is none, or a damaged one, ends in.
_NO_YOLO11 = (
    TypeError, ValueError, OSError, EOFError, RuntimeError, LookupError, AttributeError,
    ImportError,
)  # fmt: skip


def load_published_yolo11(path: Path) -> nn.Module:
    """Loads a YOLO11 `.pt` that the user has named.

    Such a file is a pickle: only the classes of its network are let through, none of its code.

    Raises:
        UserError: no such file, no YOLO11 for detection, or weights that are not finite.
    """
    if path.suffix != ".pt" or not path.is_file():
        raise UserError(f"{path} is no .pt file; give the file of a YOLO11, as yolo11n.pt")
    tasks = import_ultralytics("ultralytics.nn.tasks")
    with tempfile.TemporaryDirectory() as scratch:
        # A file that its loader does not find under the name it makes of it, it would fetch.
        link = Path(scratch) / "weights.pt"
        link.symlink_to(path.resolve())
        try:
            loaded, _ = tasks.torch_safe_load(link, safe_only=True)
        except _NO_YOLO11 as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} is no YOLO11 that can be opened safely ({reason}); give another file"
            ) from None
    model = (loaded.get("ema") or loaded.get("model")) if isinstance(loaded, dict) else None
    # Networks for other tasks are made from this one.
    if type(model) is not tasks.DetectionModel:
        kind = type(model).__name__
        raise UserError(f"{path} holds a {kind}; give a YOLO11 for detection")
    for name, tensor in model.state_dict().items():
        check_weight(name, tensor, where=path)
    return model.float()


class YoloDetector(BoxDetector):
    """Frozen YOLO11.

    Args:
        settings: input size and thresholds.
        model: a DetectionModel with its weights; it is fused (batch norms folded) here.
        names: one for each class that the weights know, in their order.
    """

    def __init__(
        self, settings: DetectorSettings, model: nn.Module | Deferred, *, names: tuple[str, ...]
    ) -> None:
        self.settings, self.names = settings, names
        super().__init__(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """See `FrozenEncoder`."""
        head: Any = model.model[-1]
        if head.nc != len(self.names):
            vocabulary = self.settings.vocabulary
            raise UserError(
                f"the detector knows {head.nc} classes, vocabulary {vocabulary!r} has "
                f"{len(self.names)}; set perception.detector.vocabulary to match the weights"
            )
        return model.eval().fuse(verbose=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Decoded boxes and class scores [B, 4 + classes, N] of pictures in 0..1."""
        return self.model(x_BCHW)[0]


class PublishedYoloDetector(FullyConvolutionalDetector, YoloDetector):
    """YOLO11 with weights of its user's, which takes pictures in their own shape."""
