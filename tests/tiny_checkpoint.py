"""A whole checkpoint folder of the tiny preset with random weights, every part with an effect."""

from pathlib import Path

import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.encoders import build_depth, build_dino
from spatial_v2a.conditioning.weights import write_weights
from spatial_v2a.conditioning.yolo import build_yolo11
from spatial_v2a.model import SpatialV2A


def shaken(module: torch.nn.Module, *, seed: int = 1, scale: float = 0.05) -> torch.nn.Module:
    """Moves every parameter a little: layers that start at zero would hide their inputs."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * scale)
    return module


def write_tiny_checkpoint(folder: Path, config: Config) -> Path:
    """Writes model and perception; the same config gives the same files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shaken(SpatialV2A(config)).save_pretrained(folder, card="Random weights for tests.")
        perception = config.perception
        write_weights(folder, "dino", shaken(build_dino(perception.dino)))
        write_weights(folder, "depth", build_depth(perception.depth))
        detector = build_yolo11(perception.detector, num_classes=perception.num_classes)
        write_weights(folder, "detector", detector)
    return folder
