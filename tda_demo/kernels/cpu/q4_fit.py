"""Scales, minima and codes of the low-bit copy (``kernels.q4``): the search for those with about the least error.

A group's first scale and minimum are its ends', in 15 steps. Two more begin there and at ends drawn in a little, and
are fitted by turns to the codes, and the codes to them; what errs least is taken. Groups whose ends hold them exactly
keep these.

Loops end with an array's length, which is a group's: one whose end the compiler knows is written out number by number.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..q4_sizes import GROUP, LEVELS
from .nf4_loops import LOOP, f32
from .partition import share
from .vectors import nearest

_SHRINKINGS = (f32(1.0), f32(0.88))  # of a group's range; clipping its ends a little costs less than coarse steps
_REFITS = 3  # both shrinkings: a sixth less squared error
_MOST_HALF = f32(65504)
_LEAST_NORMAL, _QUANTUM = f32(2.0**-14), f32(2.0**-24)  # of half precision
_LEVELS, _GROUP = f32(LEVELS), f32(GROUP)


@njit(parallel=True, nogil=True, cache=True)
def fit(groups, threads, codes, scales, minima):
    """Of ``groups`` float32 [n, 32] the ``codes`` uint8 [n, 32], and ``scales`` and ``minima`` float32 [n].

    Both have values that half precision has.
    """
    count = groups.shape[0]
    for t in prange(threads):
        chosen, values = np.empty(GROUP, f32), np.empty(GROUP, f32)
        first, last = share(count, t, threads)
        for g in range(first, last):
            scales[g], minima[g] = _best(groups[g], chosen, values)
            _nearest(groups[g], scales[g], minima[g], chosen)
            for k in range(GROUP):
                codes[g, k] = np.uint8(chosen[k])


@njit(nogil=True, cache=True)
def _best(weights, codes, values):
    """The scale and the minimum of a group; ``codes`` and ``values`` float32 [32] are overwritten."""
    lowest, highest = weights[0], weights[0]
    for k in range(1, len(weights)):
        lowest, highest = min(lowest, weights[k]), max(highest, weights[k])
    span = highest - lowest
    best_scale, best_minimum = half(span / _LEVELS), half(lowest)
    least = _error(weights, best_scale, best_minimum, codes, values)
    if least == 0:  # what cannot be better must not be moved by a refit's rounding
        return best_scale, best_minimum
    for shrinking in _SHRINKINGS:
        scale, minimum = span * (shrinking / _LEVELS), lowest + span * ((f32(1) - shrinking) / f32(2))
        for _ in range(_REFITS):
            _nearest(weights, scale, minimum, codes)
            scale, minimum = _refit(weights, codes)
        error = _error(weights, scale, minimum, codes, values)
        if error < least:
            least, best_scale, best_minimum = error, scale, minimum
    return best_scale, best_minimum


@njit(nogil=True, cache=True)
def half(number):
    """The nearest value of half precision, float32; its largest where it has none as large."""
    clipped = min(max(number, -_MOST_HALF), _MOST_HALF)
    if abs(clipped) < _LEAST_NORMAL:
        return nearest(clipped / _QUANTUM) * _QUANTUM
    bits = np.float32(clipped).view(np.uint32)
    rounded = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.uint32(rounded & np.uint32(0xFFFFE000)).view(np.float32)


@njit(nogil=True, cache=True)
def _nearest(weights, scale, minimum, codes):
    """The nearest codes; zeros where the scale is zero."""
    inverse = f32(1) / scale if scale > 0 else f32(0)
    for k in range(len(weights)):
        code = nearest((weights[k] - minimum) * inverse)
        code = code if code > 0 else f32(0)
        codes[k] = code if code < _LEVELS else _LEVELS


@njit(nogil=True, cache=True)
def _error(weights, scale, minimum, codes, values):
    """The squared one of the nearest codes. Values are computed in the order in which they are later: exactly."""
    _nearest(weights, scale, minimum, codes)
    for k in range(len(weights)):
        values[k] = codes[k] * scale + minimum - weights[k]
    return _dot(values, values)


@njit(**LOOP)
def _dot(one, other):
    total = f32(0)
    for k in range(len(one)):
        total += one[k] * other[k]
    return total


@njit(**LOOP)
def _refit(weights, codes):
    """The scale and the minimum with the least squared error for these codes."""
    total, total_codes = f32(0), f32(0)
    for k in range(len(weights)):
        total += weights[k]
        total_codes += codes[k]
    spread = _GROUP * _dot(codes, codes) - total_codes * total_codes
    slope = _GROUP * _dot(codes, weights) - total_codes * total
    scale = half(slope / spread) if spread > 0 else f32(0)
    return scale, half((total - scale * total_codes) / _GROUP)
