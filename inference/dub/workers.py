"""Worker processes: one that dies takes only its own task along, and all end with their parent.

Imports nothing heavy, so that a worker is under its parent's control before it loads anything.
"""

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from spatial_v2a.processes import end_with_parent, keep_memory_flat

_LOGGER = logging.getLogger("spatial_v2a")
# From the first polite signal to the last one.
PATIENCE_S = 5.0

# Does one task: it gets the task and a function that sends news of it to the parent.
Work = Callable[[Any, Callable[[Any], None]], Any]


@dataclass(frozen=True)
class Died:
    """What ended a worker: a signal's name, like SIGSEGV, or `exit code N`."""

    cause: str


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Any


def run_tasks(
    tasks: Iterable[Any],
    make_work: Callable[[Any], Work],
    setup: Any,
    *,
    num_workers: int,
    on_news: Callable[[Any, Any], None] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yields (task, result) as tasks end; the result is a `Died` where its process did.

    Args:
        tasks: what is to be done, in order; sent to workers one by one.
        make_work: a function of a module, called with `setup` in every worker before its tasks.
        setup: its argument.
        num_workers: tasks at once.
        on_news: called with a task and what its worker says of it.
    """
    waiting, workers, finished = deque(tasks), [], []
    try:
        while waiting or workers:
            while waiting and len(workers) < num_workers:
                workers.append(_start(make_work, setup, waiting.popleft()))
            for connection in wait([worker.connection for worker in workers]):
                worker = next(w for w in workers if w.connection is connection)
                try:
                    is_result, said = connection.recv()
                except (EOFError, ConnectionError):
                    workers.remove(worker)
                    yield worker.task, Died(_cause(worker))
                    continue
                if not is_result:
                    if on_news is not None:
                        on_news(worker.task, said)
                    continue
                task = worker.task
                if waiting:
                    worker.task = waiting.popleft()
                    _send(worker, worker.task)
                else:
                    # Without a connection it ends by itself.
                    workers.remove(worker)
                    finished.append(worker)
                    connection.close()
                yield task, said
    finally:
        _stop([*workers, *finished])


def _start(make_work: Callable, setup: Any, task: Any) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    worker = _Worker(process, ours, task)
    _send(worker, (make_work, setup, _LOGGER.level))
    _send(worker, task)
    return worker


def _send(worker: _Worker, what: Any) -> None:
    try:
        worker.connection.send(what)
    except ConnectionError:
        # It died; what it has left unsaid is read as its end.
        return


def _cause(worker: _Worker) -> str:
    worker.process.join(PATIENCE_S)
    code = worker.process.exitcode
    if code is None:
        worker.process.kill()
        return "it closed its connection"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _stop(workers: list[_Worker]) -> None:
    """Ends workers: politely, so that they remove their scratch, and then by force."""
    for worker in workers:
        worker.process.terminate()
    limit_s = time.monotonic() + PATIENCE_S
    for worker in workers:
        worker.process.join(max(0.0, limit_s - time.monotonic()))
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _serve(connection: Connection) -> None:
    """A worker's life: work is set up, and one task after another is done."""
    end_with_parent()
    # Ctrl-C reaches all processes of a terminal; the parent decides, and says so once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        make_work, setup, level = connection.recv()
        _be_like_the_command(level)
        work = make_work(setup)
        while True:
            result = work(connection.recv(), lambda news: connection.send((False, news)))
            connection.send((True, result))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return


def _be_like_the_command(level: int) -> None:
    """Remarks as in the parent, and memory that does not grow with every video."""
    keep_memory_flat()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _LOGGER.setLevel(level)


def _interrupt(number: int, frame: object) -> None:
    # Once: a second one would break the cleaning up after the first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
