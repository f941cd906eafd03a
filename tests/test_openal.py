"""OpenAL for the recorder: the system's, else make's private copy, else a refusal."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from spatial_v2a.errors import UserError
from spatial_v2a.training.stage.record import check_openal


@pytest.fixture
def bare_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without OpenAL whose environment lives in the folder returned."""

    def not_found(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", not_found)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "elsewhere")
    return tmp_path


def test_refuses_where_the_engine_would_be_silent(bare_system: Path) -> None:
    with pytest.raises(UserError, match="install package libopenal1"):
        check_openal()
    assert os.environ["LD_LIBRARY_PATH"] == "elsewhere"


def test_engines_get_the_private_copy(bare_system: Path) -> None:
    library = bare_system / "openal/lib/libopenal.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    check_openal()
    assert os.environ["LD_LIBRARY_PATH"] == f"{library.parent}:elsewhere"
