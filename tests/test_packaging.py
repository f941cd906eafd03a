"""The wheel claims one global name and carries its data; the tree holds no path of a machine."""

import importlib
import logging
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

import spatial_v2a

ROOT = Path(__file__).parents[1]
BUILD = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
# Everything the build reads; the rest of the tree (environment, data) can be gigabytes.
SOURCES = ["spatial_v2a", "conditioning", "training", "inference", "configs"]
FILES = ["pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy with the setuptools of this environment."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for folder in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_claims_exactly_one_global_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"spatial_v2a"}


def test_wheel_holds_every_module_and_all_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = set()
    for folder in SOURCES:
        prefix = "" if folder == "spatial_v2a" else "spatial_v2a/"
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT).as_posix()
            is_data = relative.startswith(("spatial_v2a/bundled/", "configs/"))
            if path.is_file() and "__pycache__" not in path.parts:
                if path.suffix == ".py" or is_data or path.name == "py.typed":
                    expected.add(prefix + relative)
    assert "spatial_v2a/py.typed" in expected
    assert "spatial_v2a/configs/tiny.yaml" in expected
    assert expected <= names, f"not in the wheel: {sorted(expected - names)}"


def test_wheel_names_its_licence_and_commands(wheel: zipfile.ZipFile) -> None:
    (points,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "spatial-v2a = spatial_v2a.inference.cli.main:main" in text
    assert "spatial-v2a-train = spatial_v2a.training.cli:main" in text
    (metadata,) = (n for n in wheel.namelist() if n.endswith("/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()


def test_every_module_imports_and_stays_silent(capfd: pytest.CaptureFixture[str]) -> None:
    before = (torch.get_num_threads(), torch.get_default_dtype(), logging.getLogger().handlers[:])
    for module in pkgutil.walk_packages(spatial_v2a.__path__, "spatial_v2a."):
        importlib.import_module(module.name)
    after = (torch.get_num_threads(), torch.get_default_dtype(), logging.getLogger().handlers[:])
    assert before == after
    assert capfd.readouterr() == ("", "")


def test_every_folder_with_modules_is_listed() -> None:
    """An explicit list forgets new folders: the editable install works, the wheel does not."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        setup = tomllib.load(file)["tool"]["setuptools"]
    for folder in SOURCES:
        for module in (ROOT / folder).rglob("*.py"):
            path = module.parent.relative_to(ROOT).as_posix()
            prefix = "" if folder == "spatial_v2a" else "spatial_v2a."
            name = prefix + path.replace("/", ".")
            assert name in setup["packages"], f"{path}/ is not in pyproject.toml's packages"
            assert setup["package-dir"][name] == path


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are tracked")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_name_no_folder_of_a_machine() -> None:
    pattern = re.compile(r"(?<![\w.$}])/(work|root|tmp|home/[a-z]+|Users/[a-z]+)/")
    found = []
    for path in tracked_files():
        if path == Path(__file__) or path.stat().st_size > 2_000_000:
            continue
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(lines, 1)
            if pattern.search(line)
        ]
    assert not found, "\n".join(found)


def test_tracked_files_are_small_and_hold_no_pickle() -> None:
    for path in tracked_files():
        assert path.stat().st_size < 16_000_000, f"{path} is too large to keep in git"
        assert path.suffix not in {".pt", ".pth", ".pkl", ".ckpt", ".bin"}, f"{path} is a pickle"


def test_the_lock_pins_every_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    pinned = {line.partition("==")[0] for line in lock.splitlines() if "==" in line}
    for name in re.findall(r'^  "([A-Za-z0-9_.-]+)', (ROOT / "pyproject.toml").read_text(), re.M):
        if not name.startswith("spatial_v2a"):
            assert name.lower().replace("_", "-") in pinned, f"{name} is not in requirements.lock"
    assert re.search(r"^torch==2\.11\.\d+$", lock, re.M), "torch must be the plain 2.11 release"
