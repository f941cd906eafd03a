"""What every test shares: no network, one thread, no window, and settings kept out of the home."""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# The key that signs dubs is made once per user: tests make one of their own.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="config-")
# Networks are compiled once for the whole run.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache-")
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_OFFLINE"] = "true"
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics-"))

import pytest  # noqa: E402
import torch  # noqa: E402

from spatial_v2a import Config, load_config  # noqa: E402
from spatial_v2a.inference.marking.signer import (  # noqa: E402
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The preset made for tests."""
    return load_config("tiny")


@pytest.fixture
def own_settings_folder(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder for the keys that sign, and none named in the environment."""
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    for variable in (KEY_VARIABLE, CERTIFICATE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return folder
