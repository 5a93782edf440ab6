"""The two loops that every compiled product is made of: rows times a vector, and a weighted sum of rows."""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be reordered and fused, so that they vectorise; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}

f32 = np.float32


def widen(code):
    raise NotImplementedError("only inside compiled code")


@overload(widen, inline="always")
def _compiled_widen(code):
    """One stored value as float32, its scale aside."""
    if code == types.uint16:
        return lambda code: np.uint32(np.uint32(code) << np.uint32(16)).view(np.float32)
    return lambda code: np.float32(code)


@njit(fastmath=FAST, nogil=True)
def matvec(codes, scales, x, first, last, out):
    """out[i] = row i times x, for rows first to last.

    Four rows share each load of x. They lie a quarter of the range apart, so that the processor sees four streams, each
    read front to back; four neighbouring rows would look to its prefetcher like jumps to and fro.
    """
    columns = x.shape[0]
    quarter = (last - first) // 4
    for i in range(first, first + quarter):
        j1, j2, j3 = i + quarter, i + 2 * quarter, i + 3 * quarter
        row_0, row_1, row_2, row_3 = codes[i], codes[j1], codes[j2], codes[j3]
        sum_0, sum_1, sum_2, sum_3 = f32(0), f32(0), f32(0), f32(0)
        for j in range(columns):
            sum_0 += widen(row_0[j]) * x[j]
            sum_1 += widen(row_1[j]) * x[j]
            sum_2 += widen(row_2[j]) * x[j]
            sum_3 += widen(row_3[j]) * x[j]
        out[i] = sum_0 * scales[i]
        out[j1] = sum_1 * scales[j1]
        out[j2] = sum_2 * scales[j2]
        out[j3] = sum_3 * scales[j3]
    for i in range(first + 4 * quarter, last):
        row = codes[i]
        total = f32(0)
        for j in range(columns):
            total += widen(row[j]) * x[j]
        out[i] = total * scales[i]


@njit(fastmath=FAST, nogil=True)
def weighted_rows(codes, weights, first, last, out):
    """out = sum of weights[i] times row i, rows first to last: a product with the transpose. Four streams as above."""
    columns = out.shape[0]
    for j in range(columns):
        out[j] = f32(0)
    quarter = (last - first) // 4
    for i in range(first, first + quarter):
        j1, j2, j3 = i + quarter, i + 2 * quarter, i + 3 * quarter
        row_0, row_1, row_2, row_3 = codes[i], codes[j1], codes[j2], codes[j3]
        weight_0, weight_1, weight_2, weight_3 = weights[i], weights[j1], weights[j2], weights[j3]
        for j in range(columns):
            out[j] += (weight_0 * widen(row_0[j]) + weight_1 * widen(row_1[j])) + (
                weight_2 * widen(row_2[j]) + weight_3 * widen(row_3[j])
            )
    for i in range(first + 4 * quarter, last):
        row, weight = codes[i], weights[i]
        for j in range(columns):
            out[j] += weight * widen(row[j])
