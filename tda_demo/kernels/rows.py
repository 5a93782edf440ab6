"""The two loops that every compiled product is made of: rows times a vector, and a weighted sum of rows."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from .nf4 import BLOCK, ONE
from .nf4_loops import FAST, add_row, f32, quantise, row_times

__all__ = ["FAST", "f32", "matvec", "weighted_rows"]


def matvec(codes, scales, x, first, last, out):
    """out[i] = row i times x float32 [columns], for rows first to last of ``codes`` with their ``scales``."""
    raise NotImplementedError("only inside compiled code")


def weighted_rows(codes, block_scales, weights, first, last, out):
    """out = sum of weights[i] times row i, rows first to last: a product with the transpose.

    ``block_scales`` are nf4's; other formats' scales do not belong to rows here, and nothing reads the argument.
    """
    raise NotImplementedError("only inside compiled code")


@overload(matvec, jit_options={"fastmath": FAST, "nogil": True})
def _matvec(codes, scales, x, first, last, out):
    return _nf4_matvec if codes.dtype == types.uint8 else _plain_matvec


@overload(weighted_rows, jit_options={"fastmath": FAST, "nogil": True})
def _weighted_rows(codes, block_scales, weights, first, last, out):
    return _nf4_weighted_rows if codes.dtype == types.uint8 else _plain_weighted_rows


def _nf4_matvec(codes, scales, x, first, last, out):
    short, units = quantise(x, scales.shape[1])
    for i in range(first, last):
        out[i] = row_times(codes, scales, i, short, units)


def _nf4_weighted_rows(codes, block_scales, weights, first, last, out):
    whole = np.zeros(block_scales.shape[1] * BLOCK, f32)  # of full blocks, which ``out`` may not end with
    for i in range(first, last):
        add_row(codes, block_scales, i, weights[i], whole)
    for j in range(out.shape[0]):
        out[j] = whole[j] * f32(1 / ONE)


def _plain_matvec(codes, scales, x, first, last, out):
    # Four rows share each load of x. They lie a quarter of the range apart, so that the processor sees four streams,
    # each read front to back; four neighbouring rows would look to its prefetcher like jumps to and fro.
    columns = x.shape[0]
    quarter = (last - first) // 4
    for i in range(first, first + quarter):
        j1, j2, j3 = i + quarter, i + 2 * quarter, i + 3 * quarter
        row_0, row_1, row_2, row_3 = codes[i], codes[j1], codes[j2], codes[j3]
        sum_0, sum_1, sum_2, sum_3 = f32(0), f32(0), f32(0), f32(0)
        for j in range(columns):
            sum_0 += _widen(row_0[j]) * x[j]
            sum_1 += _widen(row_1[j]) * x[j]
            sum_2 += _widen(row_2[j]) * x[j]
            sum_3 += _widen(row_3[j]) * x[j]
        out[i] = sum_0 * scales[i]
        out[j1] = sum_1 * scales[j1]
        out[j2] = sum_2 * scales[j2]
        out[j3] = sum_3 * scales[j3]
    for i in range(first + 4 * quarter, last):
        row = codes[i]
        total = f32(0)
        for j in range(columns):
            total += _widen(row[j]) * x[j]
        out[i] = total * scales[i]


def _plain_weighted_rows(codes, block_scales, weights, first, last, out):
    # Four streams as above.
    columns = out.shape[0]
    for j in range(columns):
        out[j] = f32(0)
    quarter = (last - first) // 4
    for i in range(first, first + quarter):
        j1, j2, j3 = i + quarter, i + 2 * quarter, i + 3 * quarter
        row_0, row_1, row_2, row_3 = codes[i], codes[j1], codes[j2], codes[j3]
        weight_0, weight_1, weight_2, weight_3 = weights[i], weights[j1], weights[j2], weights[j3]
        for j in range(columns):
            out[j] += (weight_0 * _widen(row_0[j]) + weight_1 * _widen(row_1[j])) + (
                weight_2 * _widen(row_2[j]) + weight_3 * _widen(row_3[j])
            )
    for i in range(first + 4 * quarter, last):
        row, weight = codes[i], weights[i]
        for j in range(columns):
            out[j] += weight * _widen(row[j])


def _widen(code):
    raise NotImplementedError("only inside compiled code")


@overload(_widen, inline="always")
def _compiled_widen(code):
    """One stored value as float32, its scale aside."""
    if code == types.uint16:
        return lambda code: np.uint32(np.uint32(code) << np.uint32(16)).view(np.float32)
    return lambda code: np.float32(code)
