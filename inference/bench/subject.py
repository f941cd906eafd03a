"""What is measured: a checkpoint with its weights, or a preset with random ones."""

from pathlib import Path

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2WithRegistersModel,
)

from spatial_v2a.concepts import vocabulary_names
from spatial_v2a.conditioning.detections import BoxDetector
from spatial_v2a.conditioning.detectors import STAGE
from spatial_v2a.conditioning.encoders import DepthEncoder, DinoEncoder, build_depth, build_dino
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.rtdetr import RtDetrDetector, build_rtdetr
from spatial_v2a.conditioning.yolo import YoloDetector, build_yolo11
from spatial_v2a.config import (
    DepthSettings,
    DinoSettings,
    PerceptionConfig,
    load_config,
    preset_names,
)
from spatial_v2a.errors import UserError
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.object_mix import DEFAULT_OBJECTS, Objects
from spatial_v2a.inference.engine.pipeline import Pipeline, resolve_device
from spatial_v2a.model import SpatialV2A

# Sizes of the published encoders that presets name, which a config leaves to their source.
PUBLISHED_DINO = {
    "facebook/dinov2-with-registers-small": {"num_layers": 12, "num_heads": 6, "num_registers": 4}
}
# DepthAnythingConfig's defaults are those of this one.
PUBLISHED_DEPTH = ("depth-anything/Depth-Anything-V2-Small-hf",)


def load_subject(
    *,
    checkpoint: str | None,
    preset: str | None,
    device: str,
    settings: EngineSettings | None = None,
    objects: Objects = DEFAULT_OBJECTS,
    is_compiled: bool = True,
    detector: str | None = None,
    detector_weights: Path | None = None,
) -> Pipeline:
    """Loads a checkpoint (`stage` when neither is named) or builds a preset.

    Args:
        checkpoint, preset: which of the two.
        device: auto, cpu or cuda.
        settings, objects, is_compiled: as for `Pipeline`.
        detector: who finds the boxes, yolo or rtdetr; None is their own choice.
        detector_weights: the user's own weights for it; None is the checkpoint's.

    Raises:
        UserError: both named, unknown names, damaged weights, an unusable device.
    """
    if preset is None:
        return Pipeline(
            checkpoint or "stage",
            settings=settings,
            device=device,
            objects=objects,
            is_compiled=is_compiled,
            detector=detector or STAGE,
            detector_weights=detector_weights,
        )
    if checkpoint is not None:
        raise UserError("--preset and --checkpoint exclude each other; name one")
    if preset not in preset_names():
        raise UserError(f"no preset {preset}; choose from: {', '.join(preset_names())}")
    if detector_weights is not None:
        raise UserError("--preset measures random weights; leave --detector-weights out")
    where = resolve_device(device)
    config = load_config(preset)
    if detector is not None:
        config = config.with_detector(detector)
    # A fixed draw that leaves the caller's random numbers alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SpatialV2A(config).eval().to(where)
        dino, depth, detector = (
            _random_dino(config.perception.dino),
            _random_depth(config.perception.depth),
            _random_detector(config.perception),
        )
    for encoder in (dino, depth, detector):
        encoder.to(where).optimize()
    perception = Perception(config.perception, dino=dino, depth=depth, detector=detector)
    return Pipeline(
        model, settings=settings, objects=objects, is_compiled=is_compiled, perception=perception
    )


def _random_dino(settings: DinoSettings) -> DinoEncoder:
    sizes = _published(PUBLISHED_DINO, settings.source)
    model: Dinov2WithRegistersModel = build_dino(settings.model_copy(update=sizes))
    return DinoEncoder(settings, model)


def _random_depth(settings: DepthSettings) -> DepthEncoder:
    if settings.source is None:
        return DepthEncoder(settings, build_depth(settings))
    if settings.source not in PUBLISHED_DEPTH:
        raise _unknown_source(settings.source)
    return DepthEncoder(settings, DepthAnythingForDepthEstimation(DepthAnythingConfig()))


def _random_detector(config: PerceptionConfig) -> BoxDetector:
    num_classes, names = config.num_classes, vocabulary_names(config.boxes.vocabulary)
    if config.boxes_from == "rtdetr":
        if config.rtdetr.source is not None:
            raise _unknown_source(config.rtdetr.source)
        model = build_rtdetr(config.rtdetr, num_classes=num_classes)
        return RtDetrDetector(config.rtdetr, model, names=names)
    model = build_yolo11(config.detector, num_classes=num_classes)
    return YoloDetector(config.detector, model, names=names)


def _published(sizes: dict[str, dict], source: str | None) -> dict:
    if source is None:
        return {}
    if source not in sizes:
        raise _unknown_source(source)
    return sizes[source]


def _unknown_source(source: str) -> UserError:
    return UserError(f"the sizes of {source} are unknown here; measure a checkpoint instead")
