"""A barrier for the threads of one parallel region, and the roll call that makes sure they run at once.

Numba can only start threads and wait for their end, which costs some microseconds every time; a decode step would do so
four times a layer. These wait by looking at a counter. Whoever has looked for long gives the core to somebody else.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .nf4_loops import LOOP
from .vectors import external, int32, need_contiguous, pointer

COUNTERS = 16  # int64, so that the two in use lie in lines of their own
_ARRIVED, _HERE = 0, 8
_LOOKS = 4096  # before the core is given to somebody else, some 50 us
_PATIENCE = 200_000  # further looks at a roll call, at least 50 ms
_GONE = -(2**62)  # of a roll call that was given up
_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic
def _adding(_context, counters, index, number):
    """Adds to ``counters[index]``, an int64, in one piece, and returns what it was."""
    need_contiguous(counters)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0])
        return builder.atomic_rmw("add", builder.gep(start, [values[1]]), values[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def _replacing(_context, counters, index, old, new):
    """Whether ``counters[index]`` was ``old``; then it is ``new``."""
    need_contiguous(counters)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0])
        place = builder.gep(start, [values[1]])
        both = builder.cmpxchg(place, values[2], values[3], "seq_cst", "seq_cst")
        return builder.extract_value(both, 1)

    return types.boolean(counters, types.int64, types.int64, types.int64), generate


@intrinsic
def _reading(_context, counters, index):
    """``counters[index]`` as the other threads have left it."""
    need_contiguous(counters)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0])
        return builder.load_atomic(builder.gep(start, [values[1]]), "seq_cst", 8)

    return types.int64(counters, types.int64), generate


@intrinsic
def _pausing(_context):
    """Tells the processor that a loop only waits, where it can be told."""

    def generate(context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        if _ON_X86:
            builder.call(external(builder, "llvm.x86.sse2.pause", ir.VoidType()), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _yielding(_context):
    """Gives the core to another thread that waits for one."""

    def generate(context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        builder.call(external(builder, _YIELD, int32), [])
        return context.get_dummy_value()

    return types.void(), generate


_add: Any = _adding
_replace: Any = _replacing
_read: Any = _reading
_pause: Any = _pausing
_yield: Any = _yielding


def new_counters() -> np.ndarray:
    """A region's counters, int64."""
    return np.zeros(COUNTERS, np.int64)


@njit(**LOOP)
def clear(counters):
    counters[_ARRIVED] = 0
    counters[_HERE] = 0


@njit(**LOOP)
def roll_call(counters, threads):
    """Called by each of ``threads``: True once all have; False, for all, where one has waited in vain.

    A pool may run its tasks one after the other, and a barrier would then wait for ever.
    """
    _add(counters, _HERE, 1)
    looks = 0
    while True:
        here = _read(counters, _HERE)
        if here == threads:
            return True
        if here < 0:
            return False
        if looks > _LOOKS + _PATIENCE:
            if _replace(counters, _HERE, here, _GONE):
                return False
        elif looks > _LOOKS:
            _yield()
        else:
            _pause()
        looks += 1


@njit(**LOOP)
def was_complete(counters, threads):
    """After the region: whether its roll call was."""
    return _read(counters, _HERE) == threads


@njit(**LOOP)
def barrier(counters, passed, threads):
    """Returns once all ``threads`` have called it: what any wrote before is seen by all after it.

    ``passed`` is what the last barrier of the region returned, 0 before the first.
    """
    passed += threads
    _add(counters, _ARRIVED, 1)
    looks = 0
    while _read(counters, _ARRIVED) < passed:
        if looks > _LOOKS:
            _yield()
        else:
            _pause()
        looks += 1
    return passed
