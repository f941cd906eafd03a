"""Processes that end with the one that started them, or are forked off it. Nothing heavy."""

import ctypes
import functools
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_ARENA_MAX = -8  # malloc.h


def end_with_parent() -> None:
    """Ends this process of `multiprocessing` when its parent is gone, however that was killed.

    On Linux the kernel does it, whatever this process is busy with; elsewhere a thread.
    """
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    os._exit(1)


@functools.cache
def use_one_thread_in_forks() -> None:
    """Processes forked off this one from now on run PyTorch on one thread.

    The other threads of its pool do not exist there, and the first operation that is split over
    them would wait for ever.
    """
    import torch

    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def keep_memory_flat() -> None:
    """One arena for all threads, where glibc allocates.

    With an arena a thread, what one thread allocates and another frees leaves holes: about 4 MB
    more with every video opened. Must come before the first thread.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)
