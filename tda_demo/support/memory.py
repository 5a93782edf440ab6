"""Memory that the C library holds on to."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 4 << 20


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


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Within the context Python does not look for unreachable cycles.

    It would look through everything again and again while modules are imported and vocabularies read, which leave
    little behind: for a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError on Windows
        return None
