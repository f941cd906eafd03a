"""What messages name to install an optional package is there to be installed."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from spatial_v2a.errors import install_command

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_names_published_packages_and_a_program_that_runs(extra: str) -> None:
    words = shlex.split(install_command(extra))
    installer, packages = words[: -len(EXTRAS[extra])], words[-len(EXTRAS[extra]) :]
    assert packages == EXTRAS[extra]
    asked = [*installer[: installer.index("install")], "--version"]
    assert subprocess.run(asked, capture_output=True).returncode == 0, asked


def test_no_text_names_an_extra_of_a_package_that_no_index_has() -> None:
    folders = ("spatial_v2a", "conditioning", "training", "inference", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.[pm][yd]")]
    named = [path for path in files if re.search(r"spatial-v2a\[", path.read_text("utf-8"))]
    assert files and not named, named
