"""Output files that are either whole or not there: written under a hidden name, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spatial_v2a.errors import UserError


def check_writable(path: Path, *, overwrite: bool, option: str = "-o") -> None:
    """Refuses a place where a file cannot or must not be written; creates nothing that stays.

    Args:
        path: the file to be.
        overwrite: whether it may exist.
        option: the one that names it, for the remedy.

    Raises:
        UserError: `path` exists (without `overwrite`), is a folder, or its folder is missing or
            not writable.
    """
    folder = path.parent
    if not folder.exists():
        raise UserError(f"folder {folder} of {path} does not exist; create it first")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another place for {path.name}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give another name with {option}, or --overwrite")
    try:
        # Asking the file system is the only test that also holds for read-only mounts.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".spatial-v2a-"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write into {folder} ({reason}); choose another {option}"
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a hidden name beside `path` to write to; renames it on success, else removes it."""
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        # After the rename nothing is left under this name; after an error or Ctrl-C it must go.
        partial.unlink(missing_ok=True)
