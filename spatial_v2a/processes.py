"""Processes that end with the one that started them. Imports nothing heavy."""

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Ends this process of `multiprocessing` when its parent is gone, however that was killed.

    On Linux the kernel does it, whatever this process is busy with; elsewhere a thread.
    """
    parent = parent_process()
    assert parent is not None
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
