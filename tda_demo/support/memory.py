"""Memory that the C library holds on to."""

from __future__ import annotations

import ctypes
from functools import cache


def trim_memory() -> None:
    """Gives the pages that the C library holds free back to the system; loading a model leaves hundreds of MB so."""
    trim = getattr(_c_library(), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError on Windows
        return None
