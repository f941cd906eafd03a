"""Public names and signatures are frozen: changing one is a decision, made here."""

import inspect
import subprocess
import sys

import spatial_v2a
from spatial_v2a.frame_stream import FrameStream, FrameStreamFactory
from spatial_v2a.inference.engine.stream import Stream
from spatial_v2a.model import SpatialV2A

PUBLIC = {
    "Config",
    "FrameFeatures",
    "SpatialV2A",
    "Timing",
    "UserError",
    "config_to_yaml",
    "load_config",
    "preset_names",
}


def test_public_names() -> None:
    assert set(spatial_v2a.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(spatial_v2a, name).__name__ == name
        assert name in dir(spatial_v2a)


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(spatial_v2a, "nothing_by_this_name")


def test_checkpoint_methods_keep_their_parameters() -> None:
    assert _parameters(SpatialV2A.from_pretrained) == ["path_or_id", "detector"]
    expected = ["self", "folder", "card", "perception", "overwrite"]
    assert _parameters(SpatialV2A.save_pretrained) == expected
    assert _parameters(SpatialV2A.push_to_hub) == ["self", "repo_id", "private", "card"]


def test_streams_keep_their_options_and_methods() -> None:
    options = ["seed", "nfe", "guidance", "spatial_guidance", "without", "fov_deg", "weights"]
    options += ["objects", "detector"]
    assert _parameters(SpatialV2A.stream) == ["self", *options]
    assert _parameters(Stream) == ["model", *options, "is_live", "source"]
    assert _parameters(FrameStreamFactory.__call__) == ["self", "model", *options]
    for kind in (FrameStream, Stream):
        assert _parameters(kind.push) == ["self", "frame_HWC"]
        assert _parameters(kind.reset) == _parameters(kind.close) == ["self"]


def test_importing_the_package_loads_no_torch_and_says_nothing() -> None:
    code = "import sys, spatial_v2a; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)
