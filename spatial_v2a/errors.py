"""The one exception that a user can cause; command lines print it in one line and exit with 2."""

import re
import shlex
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


class UserError(ValueError):
    """Bad input: the message names the offending value and the remedy, in one line."""


class NotSound(UserError):
    """The model gave samples that are not finite or far beyond full scale."""


def as_tuple(items: Iterable[Item], *, name: str) -> tuple[Item, ...]:
    """Several items, where one alone would be read letter by letter or fail far from here.

    Args:
        items: any iterable but a text or a path.
        name: of the argument, for the message.

    Raises:
        UserError: a single item.
    """
    if isinstance(items, str | bytes | PathLike) or not isinstance(items, Iterable):
        raise UserError(f"{name} takes several items, got {items!r}; write {name}=[{items!r}]")
    return tuple(items)


_OF_EXTRA = re.compile(r"""^([^;]+);.*\bextra\s*==\s*["']([^"']+)["']""")


def install_command(extra: str) -> str:
    """A shell command that installs the extra's requirements beside the running Python.

    Args:
        extra: a name under `optional-dependencies` in pyproject.toml.
    """
    from importlib.metadata import requires

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
