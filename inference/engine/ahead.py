"""Runs an iterator on a thread of its own, a little ahead of whoever takes from it."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item], *, num_waiting: int = 1) -> Generator[Item, None, None]:
    """Yields the items of an iterator that runs on another thread meanwhile.

    Args:
        items: any iterator; after the first `next` only the thread touches it. A generator is
            closed there when the taker stops early.
        num_waiting: items that may be ready before they are asked for; then the thread waits.

    Raises:
        Whatever `items` raises, at the place of the item that failed.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(num_waiting)
    is_wanted = threading.Event()
    is_wanted.set()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if not is_wanted.is_set():
                    return
            ready.put((_END, None))
        except BaseException as error:  # handed over whole: the taker's thread is the one to fail
            ready.put((_END, error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        is_wanted.clear()
        while thread.is_alive():
            # The thread may wait for room; what it made is not wanted any more.
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                continue
