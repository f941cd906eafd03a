"""Runs calls into the C2PA library on a thread of their own.

The library reads and writes through Python, where a Ctrl-C would abort the process and an error
would lose its reason.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

Result = TypeVar("Result")


class Access:
    """Access of one call to its files: can be ended, and remembers what went wrong.

    Attributes:
        errors: of the operating system, in order.
    """

    def __init__(self) -> None:
        self.errors: list[OSError] = []
        self._is_ended = False

    def to(self, file: BinaryIO) -> "GuardedFile":
        """An open file as the library wants it."""
        return GuardedFile(file, self)

    def end(self) -> None:
        """Lets every further access fail."""
        self._is_ended = True

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Runs one access."""
        if self._is_ended:
            raise InterruptedError("stopped")
        try:
            yield
        except OSError as error:
            self.errors.append(error)
            raise


class GuardedFile:
    """The calls that the library makes, each under the guard."""

    def __init__(self, file: BinaryIO, access: Access) -> None:
        self._file, self._access = file, access

    def read(self, size: int = -1) -> bytes:
        with self._access.guard():
            return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        with self._access.guard():
            return self._file.readinto(buffer)

    def write(self, data: bytes) -> int:
        with self._access.guard():
            return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._access.guard():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        with self._access.guard():
            return self._file.tell()

    def flush(self) -> None:
        with self._access.guard():
            self._file.flush()


def run_apart(work: Callable[[Access], Result]) -> Result:
    """Runs `work` on another thread and waits for it.

    Args:
        work: gets the access through which it opens files to the library.

    Returns:
        What `work` returns.

    Raises:
        KeyboardInterrupt: Ctrl-C came; `work` has ended by then, early.
        OSError: the first that an access met, instead of the library's own error.
    """
    access, outcome, claim, done = Access(), Future(), threading.Lock(), threading.Event()

    def body() -> None:
        if not claim.acquire(blocking=False):
            return
        try:
            outcome.set_result(work(access))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            done.set()

    try:
        threading.Thread(target=body, name="c2pa").start()
        done.wait()
    finally:
        access.end()
        # Ctrl-C may come inside `start`: whoever claims first decides whether there is work at all.
        if not claim.acquire(blocking=False):
            done.wait()
    try:
        return outcome.result()
    except Exception as error:
        if access.errors:
            raise access.errors[0] from error
        raise
