"""`ahead`: order, how far ahead, errors, and the thread's end."""

import threading
import time
from collections.abc import Iterator

import pytest

from spatial_v2a.inference.engine.ahead import ahead


def num_threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_items_come_in_order_from_another_thread() -> None:
    def made() -> Iterator[tuple[int, int]]:
        for n in range(20):
            yield n, threading.get_ident()

    items = list(ahead(made()))
    assert [n for n, _ in items] == list(range(20))
    assert {ident for _, ident in items} != {threading.get_ident()}
    assert num_threads() == 0


def test_it_runs_no_further_ahead_than_asked() -> None:
    begun: list[int] = []

    def made() -> Iterator[int]:
        for n in range(10):
            begun.append(n)
            yield n

    items = ahead(made(), num_waiting=1)
    assert next(items) == 0
    time.sleep(0.2)
    # One is ready, and one more waits for room.
    assert begun == [0, 1, 2]
    items.close()


def test_an_error_arrives_after_the_items_before_it() -> None:
    def made() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    items = ahead(made())
    assert next(items) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(items)
    assert num_threads() == 0


def test_stopping_early_closes_the_iterator_and_ends_the_thread() -> None:
    closed = threading.Event()

    def made() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = ahead(made())
    next(items)
    items.close()
    assert closed.is_set() and num_threads() == 0
