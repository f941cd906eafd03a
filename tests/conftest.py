"""What every test shares: no network, one thread, no window, and settings kept out of the home."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# The key that signs dubs is made once per user: tests make one of their own.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="config-")
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
