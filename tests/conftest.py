"""What every test shares: no network, one thread, no window, and settings kept out of the home."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# What a developer signs dubs with is not for tests.
for _name in ("SPATIAL_V2A_SIGNING_KEY", "SPATIAL_V2A_SIGNING_CERT"):
    os.environ.pop(_name, None)
# Networks are compiled once for the whole run.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache-")
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_OFFLINE"] = "true"
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics-"))

import pytest  # noqa: E402
import torch  # noqa: E402

from spatial_v2a import Config, load_config  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The preset made for tests."""
    return load_config("tiny")


@pytest.fixture
def signing_key(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key and certificates in the environment, as users name them."""
    from tests.marked_files import name_pair, new_pair

    name_pair(tmp_path_factory.mktemp("key"), monkeypatch, *new_pair())
