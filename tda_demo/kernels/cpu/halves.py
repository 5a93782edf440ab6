"""Keys and values in half precision: half the bytes that attention reads, where the processor widens them by itself.

Numba has no such numbers on a CPU: arrays are uint16 that hold their bits. A number is off by 1 in 2,048 at most, or by
3e-8 where that is more; the largest a half can be stands for what is larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .nf4_loops import LOOP, f32
from .vectors import int16

MOST = 65504.0


@intrinsic
def _narrowing(_context, number):
    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), int16)

    return types.uint16(types.float32), generate


@intrinsic
def _widening(_context, bits):
    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


_narrow: Any = _narrowing
_widen: Any = _widening


def as_halves(numbers: torch.Tensor) -> np.ndarray:
    """uint16 of the shape of ``numbers``, any float type."""
    return numbers.clamp(-MOST, MOST).half().numpy().view(np.uint16)


def number(stored):
    """A stored number, float32 or the bits of a half, as float32."""
    raise NotImplementedError("only inside compiled code")


@overload(number, inline="always")
def _number(stored):
    return (lambda stored: _widen(stored)) if stored == types.uint16 else (lambda stored: stored)


def keep(numbers, row):
    """Stores ``numbers`` float32 [n] in ``row`` [n], float32 or halves."""
    raise NotImplementedError("only inside compiled code")


@overload(keep, jit_options=LOOP)
def _keep(numbers, row):
    return _keep_halves if row.dtype == types.uint16 else _keep_floats


def _keep_halves(numbers, row):
    for j in range(row.shape[0]):
        row[j] = _narrow(min(max(numbers[j], f32(-MOST)), f32(MOST)))


def _keep_floats(numbers, row):
    for j in range(row.shape[0]):
        row[j] = numbers[j]
