"""Threads of one parallel region that find themselves on the same processor move apart.

A system may wake a thread on the processor of the one that woke it and leave both there while another is idle: Linux
looks for an idle one only where few are busy, and of two processors one is half. Threads that wait for each other by
looking then take turns at every barrier: a decode step took five times as long, for whole races (Linux 6.18, 2
processors, 2 of 17 races).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .nf4_loops import LOOP
from .vectors import constant, external, int8, int32, int64, need_contiguous, pointer

_ON_LINUX = sys.platform == "linux"
_WORDS = 128  # int64 of a set of processors: 8,192 of them
OWN, _ALONE, _ROW = 8, 8 + _WORDS, 8 + 2 * _WORDS  # where a thread's row has its set, and a set of one


@intrinsic
def _standing(_context):
    """The number of the processor that this thread runs on; -1 where nobody says."""

    def generate(context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        if not _ON_LINUX:
            return constant(-1)
        return builder.sext(builder.call(external(builder, "sched_getcpu", int32), []), int64)

    return types.int64(), generate


def _calling_for(name: str) -> Any:
    """An intrinsic for ``name`` of the C library, over the set of processors at element ``at`` of an int64 array.

    It says whether the call succeeded.
    """

    @intrinsic
    def calling(_context, array, at):
        need_contiguous(array)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            start = builder.gep(pointer(context, builder, signature.args[0], values[0]), [values[1]])
            function = external(builder, name, int32, int32, int64, int8.as_pointer())
            arguments = [ir.Constant(int32, 0), constant(8 * _WORDS), builder.bitcast(start, int8.as_pointer())]
            return builder.icmp_signed("==", builder.call(function, arguments), ir.Constant(int32, 0))

        return types.boolean(array, types.int64), generate

    return calling


processor: Any = _standing
_get_allowed: Any = _calling_for("sched_getaffinity")
_set_allowed: Any = _calling_for("sched_setaffinity")


def new_places(threads: int) -> np.ndarray:
    """int64 [threads, ...]: where each thread of a region stands, and room for ``move_apart``."""
    return np.zeros((threads, _ROW), np.int64)


@njit(**LOOP)
def note_processor(places, t):
    """The one that thread ``t`` stands on; before all have met."""
    places[t, 0] = processor()


@njit(**LOOP)
def move_apart(places, t):
    """After all have met: a thread that stands where one before it does goes to a processor where none does.

    One that it may use; where there is none it stays. It may be moved from there as before.
    """
    if not _ON_LINUX or not _is_taken(places, places[t, 0], t):
        return
    row = places[t]
    row[OWN:] = 0
    if _get_allowed(row, OWN):
        free = destination(places, t)
        if free >= 0:
            row[_ALONE + free // 64] = np.int64(1) << (free % 64)
            _set_allowed(row, _ALONE)
            _set_allowed(row, OWN)


@njit(**LOOP)
def destination(places, t):
    """The processor that thread ``t`` goes to, of those in its set where nobody stands; -1 where there are too few.

    All look through them in one order, and leave as many to those before them that have to go.
    """
    left = 0
    for other in range(1, t):
        left += _is_taken(places, places[other, 0], other)
    for step in range(1, 64 * _WORDS):
        free = (places[0, 0] + step) % (64 * _WORDS)
        if (places[t, OWN + free // 64] >> (free % 64)) & 1 and not _is_taken(places, free, len(places)):
            if left == 0:
                return free
            left -= 1
    return -1


@njit(**LOOP)
def _is_taken(places, number, threads):
    """Whether one of the first ``threads`` stands on processor ``number``."""
    taken = False
    for other in range(threads):
        taken |= places[other, 0] == number
    return taken
