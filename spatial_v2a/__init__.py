"""Causal, frame-by-frame video to true stereo sound; the public names of the core.

Names are imported on first use, so that command lines answer `--help` without loading torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatial_v2a.config import Config, config_to_yaml, load_config, preset_names
    from spatial_v2a.errors import UserError
    from spatial_v2a.features import FrameFeatures
    from spatial_v2a.model import SpatialV2A
    from spatial_v2a.timing import Timing

__all__ = [
    "Config",
    "FrameFeatures",
    "SpatialV2A",
    "Timing",
    "UserError",
    "config_to_yaml",
    "load_config",
    "preset_names",
]

_HOME = {
    "Config": "config",
    "FrameFeatures": "features",
    "SpatialV2A": "model",
    "Timing": "timing",
    "UserError": "errors",
    "config_to_yaml": "config",
    "load_config": "config",
    "preset_names": "config",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("spatial-v2a")
    if name not in _HOME:
        raise AttributeError(f"module 'spatial_v2a' has no attribute '{name}'")
    return getattr(import_module(f"spatial_v2a.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
