"""The command that installs what an optional extra of this package needs, for messages.

No package index has spatial-v2a itself, so the command names the requirements of the extra.
"""

import re
import shlex
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

_OF_EXTRA = re.compile(r"""^([^;]+);.*\bextra\s*==\s*["']([^"']+)["']""")


def install_command(extra: str) -> str:
    """A shell command that installs the extra's requirements beside the running Python.

    Args:
        extra: a name under `optional-dependencies` in pyproject.toml.
    """
    matches = [_OF_EXTRA.match(line) for line in requires("spatial-v2a") or []]
    needed = [match[1].strip() for match in matches if match and match[2] == extra]
    assert needed, f"no extra '{extra}' in pyproject.toml"
    return shlex.join([*_installer(), *needed])


def _installer() -> list[str]:
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install"]
    # What make builds where Python has no ensurepip holds uv and no pip.
    beside = Path(sys.executable).with_name("uv")
    return [str(beside) if beside.exists() else "uv", "pip", "install", "--python", sys.executable]
