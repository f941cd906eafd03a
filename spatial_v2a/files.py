"""Writes every output of the project: files that are whole or absent, and replace nothing unasked.

with Outputs(overwrite=False) as outputs:
    path = outputs.new(Path("clip.dubbed.mp4"))  # write here; it gets its name at the end

What is not finished lies in a private folder (mode 0700, random name) in the folder of the output.
A lock on it ends with its process, so that the next one knows what was left behind.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from spatial_v2a.errors import UserError

log = logging.getLogger(__name__)

SCRATCH = ".spatial-v2a-"
# Where finished files go when their names were taken during the work.
KEPT = "spatial-v2a-kept-"
# Locks of another machine are not seen on every network disk; what is this old has no owner.
_ABANDONED_AFTER_S = 7 * 24 * 3600
# With less than this nothing more can be written.
_MIN_FREE_BYTES = 2**20
_SHORT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def check_writable(path: Path, *, overwrite: bool, option: str = "-o") -> None:
    """Refuses a place where a file cannot or must not be written; creates nothing that stays.

    Args:
        path: the file to be; of a symbolic link, the file that it names.
        overwrite: whether it may exist.
        option: the one that names it, for the remedy.

    Raises:
        UserError: `path` exists (without `overwrite`), is no regular file, has too long a name, or
            its folder is missing or not writable.
    """
    folder = (_behind_link(path) if os.path.islink(path) else path).parent
    if not os.path.exists(folder) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(path)):
        raise UserError(f"{path} is an address; write to a file with {option}, then send that")
    if not os.path.exists(folder):
        raise UserError(f"folder {folder} of {path} does not exist; create it first")
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder; choose another place for {path.name}")
    mode = _mode_of(path, option=option)
    if mode is not None and stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder; name a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe or a device; name a file with {option}")
    if mode is not None and not overwrite:
        raise UserError(f"{path} exists; give another name with {option}, or --overwrite")
    try:
        # Asking the file system is the only test that also holds for read-only mounts.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write into {folder} ({reason}); choose another {option}"
        ) from error


def cannot_write(path: Path, error: Exception, *, option: str = "-o") -> UserError:
    """What a user is told when an output could not be written: the reason, and what helps.

    Args:
        path: the output.
        error: from the system, FFmpeg or libsndfile.
        option: the one that names the output.
    """
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or error
    culprit = getattr(error, "filename", None)
    if code is None and _is_full(path.parent):
        # Some libraries say no more than "system error".
        code, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
    if code in _SHORT_OF_SPACE:
        remedy = f"free space or use {option}"
    elif code == errno.ENAMETOOLONG:
        remedy = f"give a shorter name with {option}"
    elif code == errno.EFBIG:
        remedy = f"its file system takes no larger files: use {option} on another one"
    elif culprit and Path(os.fsdecode(culprit)) != path and SCRATCH not in os.fsdecode(culprit):
        return UserError(
            f"cannot write {path}: {os.fsdecode(culprit)} fails ({reason}); check that file"
        )
    elif code in _REFUSED:
        remedy = f"make its folder writable or use {option}"
    elif isinstance(error, OSError) or code is None:
        remedy = f"check its disk or use {option}"
    else:
        remedy = f"use {option} with another container, like .mkv or .wav"
    return UserError(f"cannot write {path} ({reason}); {remedy}")


@contextmanager
def written_whole(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when the block succeeds.

    Args, Raises: as for `Outputs`.
    """
    with Outputs(overwrite=overwrite) as outputs:
        yield outputs.new(path)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Writes a UTF-8 text whole or not at all."""
    with written_whole(path, overwrite=overwrite) as draft:
        draft.write_text(text, encoding="utf-8")


class Outputs:
    """Files that get their names together when the block succeeds; after an error none is there.

    A file that exists is replaced with `overwrite` only, also when it appeared during the work;
    then the finished files are kept in a new folder beside it, which the error names. A new file
    has the mode that the umask gives, a replaced one keeps its own. An output that is a symbolic
    link stays one: the file it names is written. Not for use in several threads at once.

    Args:
        overwrite: whether files that exist are replaced.

    Raises:
        UserError: on leaving the block, a file that exists must not be replaced.
        OSError: the file system refuses; see `cannot_write`.
    """

    def __init__(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._scratch: dict[Path, _Scratch] = {}
        self._drafts: list[_Draft] = []
        self._folders: list[Path] = []
        self._targets: dict[Path, Path] = {}

    def follow_links(self, paths: Iterable[Path]) -> None:
        """Follows the links of outputs to come as they are now; later ones are left alone."""
        self._targets |= {path: _behind_link(path) for path in paths}

    def new(self, path: Path) -> Path:
        """An empty file to write to; its suffix is that of `path`, whose place it takes."""
        target = self._targets.get(path) or _behind_link(path)
        scratch = self._scratch_in(target.parent)
        draft = scratch.new_file(path.suffix)
        self._drafts.append(_Draft(draft, target, path, stat.S_IMODE(draft.stat().st_mode)))
        return draft

    def temporary(self, beside: Path, *, suffix: str) -> Path:
        """An empty file for the work alone, on the disk of `beside`; it goes at the end."""
        return self._scratch_in(_behind_link(beside).parent).new_file(suffix)

    def temporary_folder(self, beside: Path) -> Path:
        """The private folder on the disk of `beside`, which goes at the end."""
        return self._scratch_in(_behind_link(beside).parent).folder

    def make_folder(self, folder: Path) -> None:
        """Makes a folder for outputs, unless it exists; after an error it goes again."""
        for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
            missing.mkdir()
            self._folders.append(missing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_written = False
        try:
            if kind is None:
                self._publish()
                is_written = True
        finally:
            for scratch in self._scratch.values():
                scratch.remove()
            for folder in reversed([] if is_written else self._folders):
                # Whoever put something into it meanwhile keeps it.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _scratch_in(self, parent: Path) -> "_Scratch":
        if parent not in self._scratch:
            self._scratch[parent] = _Scratch(parent)
        return self._scratch[parent]

    def _publish(self) -> None:
        """Gives all drafts their names, or none; the first one last, so that it is never alone."""
        named: list[_Draft] = []
        try:
            for draft in reversed(self._drafts):
                named.append(draft)
                draft.publish(overwrite=self._overwrite, has_backup=len(self._drafts) > 1)
        except BaseException as error:
            for draft in reversed(named):
                draft.withdraw()
            if isinstance(error, FileExistsError):
                finished = [(draft.draft, draft.target) for draft in self._drafts]
                raise _appeared(named[-1].path, finished) from None
            raise


@contextmanager
def written_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes `folder` when the block succeeds.

    Args:
        folder: its parents are made; of a symbolic link, the folder that it names.
        overwrite: whether a folder that exists is replaced, with all that is in it.

    Raises:
        UserError: `folder` appeared during the work (without `overwrite`).
        OSError: the file system refuses.
    """
    target = _behind_link(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _Scratch(target.parent)
    try:
        draft = scratch.folder / "new"
        draft.mkdir()
        yield draft
        file_mode = draft.stat().st_mode & 0o666
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(file_mode)  # some libraries write for their user's eyes only
        if overwrite and target.is_dir():
            _swap_folders(draft, target)
        else:
            rename_to_new(draft, target)
    except FileExistsError:
        raise _appeared(folder, [(draft, target)]) from None
    finally:
        scratch.remove()


def rename_to_new(source: Path, target: Path) -> None:
    """Renames a file or folder within its file system to a name that nothing has.

    Raises:
        FileExistsError: something has the name, a dangling symbolic link too; it stays.
    """
    if _renameat2(source, target, _RENAME_NOREPLACE):
        return
    if source.is_dir():
        # A rename replaces an empty folder: the one that claims the name.
        target.mkdir()
        source.rename(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        log.debug("no hard links for %s: %s", target, error)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # claims the name
        source.replace(target)
    else:
        source.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes private folders in `folder` whose process is no more, of this user only."""
    for entry in os.scandir(folder):
        if entry.name.startswith(SCRATCH) and entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                _remove_if_left(Path(entry.path))


class _Scratch:
    """A private folder of this process in `parent`, locked until it is removed."""

    def __init__(self, parent: Path) -> None:
        _remove_leftovers_once(parent)
        self._count, self._lock = 0, -1
        while self._lock < 0:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{_this_boot()}-", dir=parent))
            # Another process may just have taken it for a leftover: then a new one is made.
            with contextlib.suppress(FileNotFoundError):
                self._lock = _lock(self.folder)

    def new_file(self, suffix: str) -> Path:
        """A new empty file with a short name."""
        self._count += 1
        path = self.folder / f"{self._count}{suffix}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))
        return path

    def remove(self) -> None:
        """Removes the folder with all that is left in it, and then the lock."""
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            log.warning("cannot remove %s (%s); remove it by hand", self.folder, error.strerror)
        finally:
            os.close(self._lock)


@dataclass
class _Draft:
    """A file on its way: where it lies, the file it becomes, and how the user calls that.

    Attributes:
        mode: permission bits of an ordinary new file.
    """

    draft: Path
    target: Path
    path: Path
    mode: int
    _backup: Path | None = field(default=None, init=False)
    _identity: tuple[int, int] = field(default=(0, 0), init=False)

    def publish(self, *, overwrite: bool, has_backup: bool) -> None:
        """Names the file; with a backup, what it replaces can come back.

        Raises:
            FileExistsError: the name is taken, without `overwrite` or by what is no regular file.
        """
        found = self.draft.lstat()
        self._identity = (found.st_dev, found.st_ino)
        if not overwrite:
            self._set_mode(self.mode)
            rename_to_new(self.draft, self.target)
            return
        self._set_mode(self.mode)
        if os.path.lexists(self.target):
            self._take_after(self.target.lstat())
            if has_backup:
                self._keep_old()
        os.replace(self.draft, self.target)

    def withdraw(self) -> None:
        """Undoes `publish`, however far it came; what has taken the name meanwhile stays."""
        try:
            found = self.target.lstat()
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) != self._identity:
            return
        if self._backup is not None:
            os.replace(self._backup, self.target)
        else:
            os.replace(self.target, self.draft)

    def _take_after(self, old: os.stat_result) -> None:
        """Gives the draft the mode of a file that exists, and root's its owner."""
        if not stat.S_ISREG(old.st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.target))
        found = self.draft.lstat()
        if os.geteuid() == 0 and (old.st_uid, old.st_gid) != (found.st_uid, found.st_gid):
            try:
                os.chown(self.draft, old.st_uid, old.st_gid)
            except PermissionError as error:
                log.debug("%s keeps another owner: %s", self.target, error)  # a network disk
        self._set_mode(stat.S_IMODE(old.st_mode) & 0o777)

    def _set_mode(self, mode: int) -> None:
        # Some libraries write a file of their own, for their user's eyes only.
        if stat.S_IMODE(self.draft.lstat().st_mode) != mode:
            self.draft.chmod(mode)

    def _keep_old(self) -> None:
        backup = self.draft.with_name(f"{self.draft.name}.old")
        try:
            os.link(self.target, backup, follow_symlinks=False)
        except OSError as error:
            # Moving it away instead could lose it to a kill.
            log.debug("no backup of %s: %s", self.target, error)
        else:
            self._backup = backup


def _behind_link(path: Path) -> Path:
    """The absolute path that is written for `path`: links followed, existing or not."""
    return Path(os.path.realpath(path))


def _mode_of(path: Path, *, option: str) -> int | None:
    """Kind and mode of what is at `path`, links followed; None if nothing is."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_write(path, error, option=option) from error


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _MIN_FREE_BYTES
    except OSError:
        return False


def _appeared(path: Path, finished: list[tuple[Path, Path]]) -> UserError:
    """Keeps finished files, (where it lies, what it was to be), and says where they are."""
    said = f"{path} appeared during the work and stays as it is"
    kept: dict[Path, Path] = {}
    try:
        for draft, target in finished:
            if target.parent not in kept:
                kept[target.parent] = _new_folder(target.parent)
            draft.rename(kept[target.parent] / target.name)
    except OSError as error:
        return UserError(f"{said}; the finished work is lost ({error.strerror}); run it again")
    return UserError(f"{said}; the finished work is in {', '.join(map(str, kept.values()))}")


def _new_folder(parent: Path) -> Path:
    number = 1
    while True:
        try:
            (parent / f"{KEPT}{number}").mkdir()
            return parent / f"{KEPT}{number}"
        except FileExistsError:
            number += 1


def _swap_folders(draft: Path, target: Path) -> None:
    """Puts `draft` in the place of `target`, which then lies where `draft` did, or is gone."""
    if _renameat2(draft, target, _RENAME_EXCHANGE):
        return
    # Not into scratch: after a kill in between, the old folder must not count as a leftover.
    old = _new_folder(target.parent) / target.name
    target.rename(old)
    try:
        rename_to_new(draft, target)
    except BaseException:
        old.rename(target)
        old.parent.rmdir()
        raise
    shutil.rmtree(old.parent)


_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
_AT_FDCWD = -100
# File systems and kernels that do not know a flag answer with one of these.
_UNKNOWN_FLAG = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Renames with a flag in one step; False where that does not exist.

    Raises:
        OSError: it exists, and failed.
    """
    function = getattr(_libc(), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN_FLAG:
        return False
    raise OSError(code, os.strerror(code), str(target))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _lock(folder: Path) -> int:
    """Locks a folder while the descriptor that is returned is open, at most until the process ends.

    Raises:
        FileNotFoundError: somebody removed it meanwhile.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # No locks here; then nothing young is removed either.
            log.debug("%s not locked: %s", folder, error)
        if not os.path.samestat(os.fstat(descriptor), folder.lstat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        log.debug("%s stays: %s", folder, error)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        newest_s = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
        is_of_this_machine = folder.name.startswith(f"{SCRATCH}{_this_boot()}-")
        if is_of_this_machine or time.time() - newest_s > _ABANDONED_AFTER_S:
            shutil.rmtree(folder)
    except OSError as error:
        # Mostly, its process is alive.
        log.debug("%s stays: %s", folder, error)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=256)
def _remove_leftovers_once(folder: Path) -> None:
    """A process that writes thousands of files into a folder looks through it once."""
    remove_leftovers(folder)


@cache
def _this_boot() -> str:
    """Eight digits for this machine since it was started; its locks are sure to be seen here."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        name = os.uname().nodename.encode()
    return hashlib.sha256(name).hexdigest()[:8]
