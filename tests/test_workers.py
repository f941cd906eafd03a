"""Worker processes: what ends one ends no other, and all end with their parent.

Imports nothing heavy: every worker imports this file.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatial_v2a.inference.dub.workers import Died, run_tasks


def _crash_on(name: str):
    """Work that ends its process at tasks of this name, as a fault in native code does."""

    def work(task: str, tell) -> str:
        tell(os.getpid())
        if task.startswith(name):
            os.kill(os.getpid(), {"crash": signal.SIGSEGV, "crash-abort": signal.SIGABRT}[task])
        return task.upper()

    return work


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_task_that_ends_its_process_ends_no_other(num_workers: int) -> None:
    tasks = ["a", "crash", "b", "crash-abort", "c", "d"]
    done = dict(run_tasks(tasks, _crash_on, "crash", num_workers=num_workers))
    assert done == {
        "a": "A", "b": "B", "c": "C", "d": "D", "crash": Died("SIGSEGV"),
        "crash-abort": Died("SIGABRT"),
    }  # fmt: skip


# Behind a shell's & a process inherits deaf ears for Ctrl-C.
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from spatial_v2a.inference.dub.workers import run_tasks
from tests.test_workers import _sleep_in
for _ in run_tasks([0, 1], _sleep_in, sys.argv[1], num_workers=2,
                   on_news=lambda task, pid: print(pid, flush=True)):
    pass
"""


def _sleep_in(phase: str):
    """Work that says its process and then sleeps, while it loads or at its task."""
    if phase == "loading":
        # What a library in C does that holds the interpreter.
        print(os.getpid(), flush=True)
        ctypes.PyDLL(None).sleep(60)

    def work(task: int, tell) -> None:
        tell(os.getpid())
        time.sleep(60)

    return work


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("loading", signal.SIGKILL),
        ("working", signal.SIGKILL),
        ("loading", signal.SIGINT),
        ("working", signal.SIGTERM),
    ],
)
def test_workers_end_with_their_parent(phase: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, phase], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(number)
    limit = time.monotonic() + (2 if number == signal.SIGKILL else 8)
    while time.monotonic() < limit and any(map(is_alive, workers)):
        time.sleep(0.02)
    assert not any(map(is_alive, workers))
    process.wait(10)


POOL = """
import multiprocessing, os, time
from spatial_v2a.inference.evaluation.scoring import score_table
from tests.test_workers import Sleeper
if __name__ == "__main__":
    score_table([0, 1], Sleeper(), num_jobs=2, progress=print)
"""


class Sleeper:
    """Scores nothing: it says its process, and sleeps."""

    def score(self, row: int) -> None:
        print(os.getpid(), flush=True)
        time.sleep(60)


def test_workers_of_an_evaluation_end_with_it_too() -> None:
    """They stayed for ever, each with a model (2026-12-01)."""
    process = subprocess.Popen(
        [sys.executable, "-c", POOL], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    limit = time.monotonic() + 2
    while time.monotonic() < limit and any(map(is_alive, workers)):
        time.sleep(0.02)
    assert not any(map(is_alive, workers))
    process.wait(10)


def is_alive(process: int) -> bool:
    """Whether it runs; one that only waits to be asked for its exit code does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
