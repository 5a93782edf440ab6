"""Memory: how much there is, and what the C library holds on to."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import ContextDecorator
from functools import cache
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 4 << 20


def available_memory(cgroup: Path = CGROUP) -> int:
    """Bytes: the smaller of what the machine has available and what the container's limit (cgroup v2) leaves."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        if limit != "max":
            free = min(free, max(0, int(limit) - used + _reclaimable(cgroup)))
    except (OSError, ValueError):
        pass  # no such limit here
    return free


def _reclaimable(cgroup: Path) -> int:
    """File pages that count as used and make way when memory is asked for: weights once read lie there."""
    lines = (cgroup / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))


def trim_memory() -> None:
    """Gives the pages that the C library holds free back to the system; loading a model leaves hundreds of MB so."""
    trim = getattr(_c_library(), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """Has the C library ask the system for blocks of ``_LARGE`` bytes and more, and give them back when they are freed.

    Left alone it raises that limit to 32 MB as such blocks come and go, and then keeps what a long prompt's pass has
    used: 380 MB after one of 980 tokens. A short prompt and a step use no block as large.
    """
    option = getattr(_c_library(), "mallopt", None)  # glibc's alone
    if option is not None:
        option(_M_MMAP_THRESHOLD, _LARGE)


class _NothingCollected(ContextDecorator):
    """Within the context Python does not look for unreachable cycles, in any thread.

    It would look through everything again and again while modules are imported, vocabularies read and functions
    compiled, which leave little behind: for a fifth of the time that the first two take, an eighth of the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0  # of all threads, each as often as it has entered
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0 and self._was_enabled:
                gc.enable()


nothing_collected = _NothingCollected()


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError on Windows
        return None
