"""PyTorch in processes that are forked off one that has loaded a model."""

import functools
import os

import torch


@functools.cache
def use_one_thread_in_forks() -> None:
    """Processes forked off this one from now on run PyTorch on one thread.

    The other threads of its pool do not exist there, and the first operation that is split over
    them would wait for ever.
    """
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
