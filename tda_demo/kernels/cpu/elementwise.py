"""The functions of one number that the compiled step needs, of plain arithmetic, so that loops over them vectorise."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..activations import GELU_ERF, GELU_TANH, SILU
from .nf4_loops import LOOP, f32


@njit(inline="always", **LOOP)
def exp(x):
    """exp in float32 to about 1e-7."""
    scaled = min(max(x, f32(-87.0)), f32(88.0)) * f32(1.4426950408889634)
    whole = np.floor(scaled + f32(0.5))
    part = scaled - whole
    power = f32(1.5403530e-4)
    power = power * part + f32(1.3333558e-3)
    power = power * part + f32(9.6181291e-3)
    power = power * part + f32(5.5504109e-2)
    power = power * part + f32(2.4022651e-1)
    power = power * part + f32(6.9314718e-1)
    power = power * part + f32(1.0)
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(inline="always", **LOOP)
def tanh(x):
    return f32(1) - f32(2) / (exp(f32(2) * x) + f32(1))


@njit(inline="always", **LOOP)
def activate(x, activation):
    if activation == SILU:
        return x / (f32(1) + exp(-x))
    if activation == GELU_TANH:
        return f32(0.5) * x * (f32(1) + tanh(f32(0.7978845608) * (x + f32(0.044715) * x * x * x)))
    if activation == GELU_ERF:
        return f32(0.5) * x * (f32(1) + f32(math.erf(x * f32(0.7071067812))))
    return max(x, f32(0))


@njit(**LOOP)
def activate_all(x, first, last, activation):
    """``x[first:last]`` in place. Each activation has a loop of its own: one that chooses inside does not vectorise.

    A literal 0 as ``first`` would be a type of its own, and all of it compiled once more for that.
    """
    if activation == SILU:
        for i in range(first, last):
            x[i] = activate(x[i], SILU)
    elif activation == GELU_TANH:
        for i in range(first, last):
            x[i] = activate(x[i], GELU_TANH)
    elif activation == GELU_ERF:
        for i in range(first, last):
            x[i] = activate(x[i], GELU_ERF)
    else:
        for i in range(first, last):
            x[i] = max(x[i], f32(0))
