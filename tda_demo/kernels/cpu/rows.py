"""The two loops that every compiled product is made of: rows times a vector, and a weighted sum of rows."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from ..nf4 import BLOCK, ONE
from ..q4_sizes import RECORD, RECORD_BYTES
from . import int8_rows, int8_sums, q4_rows
from .nf4_loops import LOOP, add_row, f32, quantise, row_times
from .processor import HAS_SHUFFLE
from .scattered_rows import FOUR, add_apart, add_four, dot

__all__ = ["LOOP", "add_chosen", "f32", "matvec", "pick", "weighted_rows"]

_AHEAD = 2  # rows


def matvec(codes, scales, x, chosen, first, last, out):
    """out[i] = row pick(chosen, i) times x float32 [columns], for i from first to last."""
    raise NotImplementedError("only inside compiled code")


def weighted_rows(codes, block_scales, weights, chosen, first, last, out):
    """out = sum of weights[i] times row pick(chosen, i), i from first to last: a product with the transpose.

    ``block_scales`` are nf4's; other formats' scales do not belong to rows here, and nothing reads the argument.
    """
    raise NotImplementedError("only inside compiled code")


def pick(chosen, i):
    """The row that place i stands for: ``chosen[i]``, or i itself where ``chosen`` is None, which is all rows."""
    raise NotImplementedError("only inside compiled code")


@overload(pick, inline="always")
def _compiled_pick(chosen, i):
    return (lambda chosen, i: i) if chosen in (None, types.none) else (lambda chosen, i: chosen[i])


@overload(matvec, jit_options=LOOP)
def _matvec(codes, scales, x, chosen, first, last, out):
    if codes.dtype == types.uint32:
        return _q4_matvec if chosen in (None, types.none) else _q4_matvec_of_chosen
    if codes.dtype == types.uint8:
        return _nf4_matvec
    if codes.dtype == types.int8 and HAS_SHUFFLE:
        return _int8_matvec if chosen in (None, types.none) else _int8_matvec_of_chosen
    return _plain_matvec if chosen in (None, types.none) else _plain_matvec_of_chosen


@overload(weighted_rows, jit_options=LOOP)
def _weighted_rows(codes, block_scales, weights, chosen, first, last, out):
    if codes.dtype == types.uint8:
        return _nf4_weighted_rows
    if chosen not in (None, types.none):
        return _weighted_rows_of_chosen
    return _int8_weighted_rows if codes.dtype == types.int8 and HAS_SHUFFLE else _plain_weighted_rows


def _q4_matvec(codes, scales, x, chosen, first, last, out):
    records = codes.view(np.uint8).reshape(codes.shape[0], -1, RECORD_BYTES)
    short, factors = np.empty(records.shape[1] * RECORD, np.int8), np.empty((records.shape[1], 4), f32)
    q4_rows.quantise(x, short, factors)
    q4_rows.matvec(records, short, factors, first, last, out[first:last])


def _q4_matvec_of_chosen(codes, scales, x, chosen, first, last, out):
    records = codes.view(np.uint8).reshape(codes.shape[0], -1, RECORD_BYTES)
    short, factors = np.empty(records.shape[1] * RECORD, np.int8), np.empty((records.shape[1], 4), f32)
    q4_rows.quantise(x, short, factors)
    for i in range(first, last):
        q4_rows.row_times(records, chosen[i], 0, short, factors, i, out)


def _nf4_matvec(codes, scales, x, chosen, first, last, out):
    short, units = quantise(x, scales.shape[1])
    for i in range(first, last):
        out[i] = row_times(codes, scales, pick(chosen, i), short, units)


def _nf4_weighted_rows(codes, block_scales, weights, chosen, first, last, out):
    whole = np.zeros(block_scales.shape[1] * BLOCK, f32)  # of full blocks, which ``out`` may not end with
    for i in range(first, last):
        add_row(codes, block_scales, pick(chosen, i), weights[i], whole)
    for j in range(out.shape[0]):
        out[j] = whole[j] * f32(1 / ONE)


def _int8_matvec(codes, scales, x, chosen, first, last, out):
    int8_rows.matvec(codes, scales, x, first, last, out)


def _int8_matvec_of_chosen(codes, scales, x, chosen, first, last, out):
    int8_rows.matvec_of_chosen(codes, scales, x, chosen, first, last, out)


def _plain_matvec(codes, scales, x, chosen, first, last, out):
    # Four rows share each load of x. They lie a quarter of the range apart, so that the processor sees four streams,
    # each read front to back; four neighbouring rows would look to its prefetcher like jumps to and fro.
    columns = x.shape[0]
    quarter = (last - first) // 4
    for i in range(first, first + quarter):
        i1, i2, i3 = i + quarter, i + 2 * quarter, i + 3 * quarter
        row_0, row_1, row_2, row_3 = codes[i], codes[i1], codes[i2], codes[i3]
        sum_0, sum_1, sum_2, sum_3 = f32(0), f32(0), f32(0), f32(0)
        for j in range(columns):
            sum_0 += _widen(row_0[j]) * x[j]
            sum_1 += _widen(row_1[j]) * x[j]
            sum_2 += _widen(row_2[j]) * x[j]
            sum_3 += _widen(row_3[j]) * x[j]
        out[i] = sum_0 * scales[i]
        out[i1] = sum_1 * scales[i1]
        out[i2] = sum_2 * scales[i2]
        out[i3] = sum_3 * scales[i3]
    for i in range(first + 4 * quarter, last):
        row_0 = codes[i]
        sum_0 = f32(0)
        for j in range(columns):
            sum_0 += _widen(row_0[j]) * x[j]
        out[i] = sum_0 * scales[i]


def _plain_matvec_of_chosen(codes, scales, x, chosen, first, last, out):
    for i in range(first, last):
        row = chosen[i]
        out[i] = dot(codes, row, chosen[min(i + _AHEAD, last - 1)], x) * scales[row]


def _int8_weighted_rows(codes, block_scales, weights, chosen, first, last, out):
    int8_sums.weighted_rows(codes, weights, first, last, out)


def _plain_weighted_rows(codes, block_scales, weights, chosen, first, last, out):
    for j in range(out.shape[0]):
        out[j] = f32(0)
    quarter = (last - first) // FOUR  # as many streams as above
    for i in range(first, first + quarter):
        add_apart(codes, i, quarter, weights, out)
    for i in range(first + FOUR * quarter, last):
        row, weight = codes[i], weights[i]
        for j in range(out.shape[0]):
            out[j] += weight * _widen(row[j])


def _weighted_rows_of_chosen(codes, block_scales, weights, chosen, first, last, out):
    add_chosen(codes, weights, chosen, first, last, 0, out)


def add_chosen(codes, weights, chosen, first, last, begin, out):
    """out = the sum of weights[i] times row chosen[i], columns from ``begin`` on, i from first to last."""
    raise NotImplementedError("only inside compiled code")


@overload(add_chosen, jit_options=LOOP)
def _add_chosen(codes, weights, chosen, first, last, begin, out):
    return _int8_add_chosen if codes.dtype == types.int8 and HAS_SHUFFLE else _plain_add_chosen


def _int8_add_chosen(codes, weights, chosen, first, last, begin, out):
    int8_sums.weighted_rows_of_chosen(codes, weights, chosen, first, last, begin, out)


def _plain_add_chosen(codes, weights, chosen, first, last, begin, out):
    for j in range(out.shape[0]):
        out[j] = f32(0)
    whole = first + (last - first) // FOUR * FOUR
    for i in range(first, whole, FOUR):
        add_four(codes, chosen, weights, i, last, begin, out)
    for i in range(whole, last):
        row, weight = codes[chosen[i]][begin : begin + out.shape[0]], weights[i]
        for j in range(out.shape[0]):
            out[j] += weight * _widen(row[j])


def _widen(code):
    raise NotImplementedError("only inside compiled code")


@overload(_widen, inline="always")
def _compiled_widen(code):
    """One stored value as float32, its scale aside."""
    if code == types.uint16:
        return lambda code: np.uint32(np.uint32(code) << np.uint32(16)).view(np.float32)
    return lambda code: np.float32(code)
