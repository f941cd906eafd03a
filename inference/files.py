"""Output files that are either whole or not there: written under a hidden name, then renamed.

What a killed process left under such names goes when the same file is written again.
"""

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spatial_v2a.errors import UserError

# How hidden scratch folders begin; the process that owns one stands next.
SCRATCH = ".spatial-v2a-"


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
    partial = scratch_path(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        # After the rename nothing is left under this name; after an error or Ctrl-C it must go.
        partial.unlink(missing_ok=True)


def scratch_path(path: Path, *, kind: str = "") -> Path:
    """A hidden name beside `path` for this process to work under.

    Args:
        path: the file to be.
        kind: tells several such files apart.
    """
    remove_leftovers(path)
    return path.with_name(f".{path.stem}.partial-{os.getpid()}{kind}{path.suffix}")


def remove_leftovers(path: Path) -> None:
    """Removes hidden files beside `path` that a process which is no more has left for it.

    So do its scratch folders (`scratch_folder`), whatever file they were for.
    """
    # A second dot: a file that was worked on under its hidden name, like one being signed.
    owner = re.compile(r"\.{1,2}" + re.escape(f"{path.stem}.partial-") + r"(\d+)\b.*")
    for found in path.parent.glob(f".*{glob.escape(path.stem)}.partial-*"):
        match = owner.fullmatch(found.name)
        if match and not _is_running(int(match[1])):
            found.unlink(missing_ok=True)
    for folder in path.parent.glob(f"{SCRATCH}*-*"):
        process = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if folder.is_dir() and process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A hidden folder in `beside` for this process that goes at the end."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=f"{SCRATCH}{os.getpid()}-") as folder:
        yield Path(folder)


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # Somebody else's, or a system that does not answer: leave its file alone.
        return True
    return True
