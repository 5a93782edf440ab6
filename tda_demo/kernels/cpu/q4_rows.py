"""Rows of the low-bit copy (``kernels.q4``) times a vector that is rounded to int8, so that products are whole numbers.

A processor multiplies 32 bytes at once and adds neighbours, which a compiler does not find in a loop: there the loop is
written in LLVM's own language. Elsewhere it is a plain one, right and slow.

Four rows a quarter of a range apart share each load of the vector, as in ``rows``, and ask for what they read a little
later. Measured on 2 cores whose memory plain loops read at 30 GB/s: 39 GB/s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..q4_sizes import GROUP, RECORD, RECORD_BYTES, X_ONE
from . import rounding
from .nf4_loops import LOOP, f32
from .processor import HAS_DOT, HAS_SHUFFLE
from .vectors import (
    Bytes,
    Floats,
    Ints,
    Shorts,
    ask,
    constant,
    external,
    float32,
    int16,
    int32,
    load,
    nearest,
    need_contiguous,
    nibbles,
    pointer,
    vector,
    zeroed,
)

_X_ONE = f32(X_ONE)
_HALF = GROUP // 2
STREAMS = 4  # rows at once
_AHEAD = 2880  # bytes of a stream of rows that are asked for before they are read
_LOOSE = ("contract", "reassoc")

_Four, _Halves = ir.VectorType(float32, 4), ir.VectorType(ir.HalfType(), 4)


@njit(**LOOP)
def plain_quantise(x, codes, factors, begin):
    """``quantise`` from the record ``begin`` on."""
    for record in range(begin, factors.shape[0]):
        for group in range(2):
            first = record * RECORD + group * GROUP
            last = min(first + GROUP, x.shape[0])
            largest = f32(0)
            for j in range(first, last):
                largest = max(largest, abs(x[j]))
            inverse, total = _X_ONE / max(largest, f32(1e-30)), np.int32(0)
            for half in range(2):
                start, place = first + half * _HALF, record * RECORD + half * GROUP + group * _HALF
                for k in range(_HALF):
                    whole = np.int8(nearest(x[start + k] * inverse)) if start + k < last else np.int8(0)
                    codes[place + k] = whole
                    total += np.int32(whole)
            factors[record, group] = largest / _X_ONE
            factors[record, 2 + group] = largest / _X_ONE * f32(total)


@njit(**LOOP)
def _fast_quantise(x, codes, factors):
    full = x.shape[0] // RECORD
    for record in range(full):
        for group in range(2):
            place = record * RECORD + group * _HALF
            largest, total = rounding.to_bytes(x, record * RECORD + group * GROUP, _X_ONE, codes, place)
            factors[record, group] = largest / _X_ONE
            factors[record, 2 + group] = largest / _X_ONE * total
    plain_quantise(x, codes, factors, full)


@njit(**LOOP)
def _plain_quantise(x, codes, factors):
    plain_quantise(x, codes, factors, 0)


# quantise(x, codes, factors): x float32 [columns] as ``codes`` int8 [64 * records], in the order of a record's codes;
# ``factors`` float32 [records, 4] are what one unit of each group is worth, and the groups' sums.
quantise: Any = _fast_quantise if HAS_SHUFFLE else _plain_quantise


@njit(**LOOP)
def matvec(records, codes, factors, first, last, out):
    """out[i - first] = row i times a quantised vector, for i from first to last."""
    quarter = (last - first) // STREAMS
    for i in range(quarter):
        rows_times(records, first + i, quarter, codes, factors, i, out)
    for i in range(STREAMS * quarter, last - first):
        row_times(records, first + i, 0, codes, factors, i, out)


@njit(inline="always")
def from_half(low, high):
    """The value of two bytes; infinities and what is no number are never stored."""
    bits = np.uint32(low) | np.uint32(high) << np.uint32(8)
    magnitude = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * f32(2.0**112)
    return -magnitude if bits & np.uint32(0x8000) else magnitude


@njit(**LOOP)
def plain_row_times(records, i, _step, codes, factors, at, out):
    total = f32(0)
    for r in range(records.shape[1]):
        record = records[i, r]
        for group in range(2):
            products = np.int32(0)
            for p in range(group * _HALF, (group + 1) * _HALF):
                products += np.int32(record[p] & 15) * codes[r * RECORD + p]
                products += np.int32(record[p] >> 4) * codes[r * RECORD + GROUP + p]
            place = GROUP + 2 * group
            total += from_half(record[place], record[place + 1]) * factors[r, group] * f32(products)
            total += from_half(record[place + 4], record[place + 5]) * factors[r, 2 + group]
    out[at] = total


@njit(**LOOP)
def plain_rows_times(records, i, step, codes, factors, at, out):
    for k in range(STREAMS):
        plain_row_times(records, i + k * step, 0, codes, factors, at + k * step, out)


def _dot(builder: Any, low: Any, high: Any, x_low: Any, x_high: Any) -> Any:
    """Of 64 products of at most 15 * 127 eight sums, those of one group in each half."""
    if HAS_DOT:
        four = external(builder, "llvm.x86.avx512.vpdpbusd.256", Ints, Ints, Ints, Ints)
        total = ir.Constant(Ints, [0] * 8)
        for codes, x in ((low, x_low), (high, x_high)):
            total = builder.call(four, [total, builder.bitcast(codes, Ints), builder.bitcast(x, Ints)])
        return total
    by_pairs = external(builder, "llvm.x86.avx2.pmadd.ub.sw", Shorts, Bytes, Bytes)
    add_pairs = external(builder, "llvm.x86.avx2.pmadd.wd", Ints, Shorts, Shorts)
    shorts = builder.add(builder.call(by_pairs, [low, x_low]), builder.call(by_pairs, [high, x_high]))
    return builder.call(add_pairs, [shorts, vector([1] * 16, int16)])


def _fast_rows_times(count: int) -> Any:
    """The intrinsic for so many rows, ``step`` apart in ``records`` and in ``out``."""

    @intrinsic
    def rows_times(_context, records, i, step, codes, factors, at, out):
        need_contiguous(records, codes, factors, out)
        signature = types.void(records, i, step, codes, factors, at, out)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, values[0])
            length = builder.extract_value(array.shape, 1)
            width = builder.mul(length, constant(RECORD_BYTES))
            numbers = [builder.add(values[1], builder.mul(values[2], constant(k))) for k in range(count)]
            rows = [builder.gep(array.data, [builder.mul(number, width)]) for number in numbers]
            codes, factors, out = (pointer(context, builder, signature.args[k], values[k]) for k in (3, 4, 6))
            products = [zeroed(builder, Floats) for _ in range(count)]
            minima = [zeroed(builder, _Four) for _ in range(count)]
            halves = vector([0] * 4 + [1] * 4, int32)
            with cgutils.for_range(builder, length) as loop:
                here = builder.gep(codes, [builder.mul(loop.index, constant(RECORD))])
                x_low, x_high = (load(builder, here, Bytes, at) for at in (0, GROUP))
                factor = load(builder, builder.gep(factors, [builder.mul(loop.index, constant(4))]), _Four, 0)
                offset = builder.mul(loop.index, constant(RECORD_BYTES))
                for row, product, minimum in zip(rows, products, minima, strict=True):
                    ask(builder, row, builder.add(offset, constant(_AHEAD)))
                    record = builder.gep(row, [offset])
                    low, high = nibbles(builder, load(builder, record, Bytes, 0))
                    whole = builder.sitofp(_dot(builder, low, high, x_low, x_high), Floats)
                    stored = load(builder, record, _Halves, GROUP)
                    scaled = builder.fmul(builder.fpext(stored, _Four), factor, flags=_LOOSE)
                    scales = builder.shuffle_vector(scaled, scaled, halves)
                    _add(builder, product, builder.fmul(whole, scales, flags=_LOOSE))
                    _add(builder, minimum, scaled)
            add_up = external(builder, "llvm.vector.reduce.fadd.v8f32", float32, float32, Floats)
            for k, (product, minimum) in enumerate(zip(products, minima, strict=True)):
                both = [builder.extract_element(builder.load(minimum), ir.Constant(int32, lane)) for lane in (2, 3)]
                start = builder.fadd(*both, flags=_LOOSE)
                total = builder.call(add_up, [start, builder.load(product)], fastmath=("reassoc",))
                place = builder.add(values[5], builder.mul(values[2], constant(k)))
                builder.store(total, builder.gep(out, [place]))
            return context.get_dummy_value()

        return signature, generate

    return rows_times


def _add(builder: Any, variable: Any, number: Any) -> None:
    builder.store(builder.fadd(builder.load(variable), number, flags=_LOOSE), variable)


rows_times: Any = _fast_rows_times(STREAMS) if HAS_SHUFFLE else plain_rows_times
row_times: Any = _fast_rows_times(1) if HAS_SHUFFLE else plain_row_times
