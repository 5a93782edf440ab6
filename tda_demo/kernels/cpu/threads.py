"""The cores, lent to one compiled call at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numba
import torch

_running = threading.Lock()


@contextmanager
def cores(threads: int) -> Iterator[None]:
    """Within the context compiled kernels have ``threads`` threads, and no other thread of this process runs one.

    Two at once would share the cores and spoil each other's times, and not every threading layer of numba allows it.
    """
    with _running:
        _start_pool()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield


@cache
def _start_pool() -> None:
    """Starts numba's threads. Its OpenMP layer sets the thread count that torch goes by too: that is put back."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)
