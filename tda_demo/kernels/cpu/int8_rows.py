"""Rows of int8 codes times a vector that is rounded to int16, so that products are whole numbers.

A processor multiplies 16 pairs of shorts at once and adds neighbours: half the instructions of products in floats,
which are no faster than memory. The loop is written in LLVM's own language; where the processor has no such
instruction, ``rows`` multiplies floats.

Four rows a quarter of a range apart share each load of the vector, as in ``rows``, and ask for what they read a little
later. Measured on 2 cores (AMD EPYC, AVX2): 1.18 times the bytes a second that products in floats read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import rounding
from .nf4_loops import LOOP, f32
from .scattered_rows import row_address
from .vectors import (
    Floats,
    Ints,
    Shorts,
    ask,
    constant,
    external,
    float32,
    int8,
    load,
    nearest,
    need_contiguous,
    pointer,
    spread,
    zeroed,
)

BLOCK = 256  # columns that are rounded alike

_X_ONE = f32(2**15 - 1)  # of a rounded block's largest; sums of BLOCK products of it and a code are less than 2^31
_LEAST = f32(1e-33)  # whose inverse is a number
_STREAMS = 4  # rows at once
_AHEAD = 1152  # bytes of a row that are asked for before they are read
_ROWS_AHEAD = 2  # of rows that lie anywhere
_STEP = 32  # columns
_LOOSE = ("contract", "reassoc")

_Codes = ir.VectorType(int8, Shorts.count)


@njit(**LOOP)
def quantised(x):
    """x float32 [columns] as int16 [columns], and what one is worth in each block, float32 [blocks].

    An element is off by 1.6e-5 of the largest of its block at most.
    """
    codes, units = np.empty(x.shape[0], np.int16), np.empty((x.shape[0] + BLOCK - 1) // BLOCK, f32)
    quantise(x, codes, units)
    return codes, units


@njit(**LOOP)
def quantise(x, codes, units):
    """Writes what ``quantised`` gives."""
    for block in range(units.shape[0]):
        first, last = block * BLOCK, min((block + 1) * BLOCK, x.shape[0])
        whole = first + (last - first) // _STEP * _STEP
        largest = rounding.largest(x, first, whole)
        for j in range(whole, last):
            largest = max(largest, abs(x[j]))
        inverse = _X_ONE / max(largest, _LEAST)
        rounding.to_shorts(x, first, whole, inverse, codes)
        for j in range(whole, last):
            codes[j] = np.int16(nearest(x[j] * inverse))
        units[block] = largest / _X_ONE


@njit(**LOOP)
def matvec(rows, scales, x, first, last, out):
    """out[i] = scales[i] times row i of ``rows`` int8 [n, columns] times x float32 [columns], i from first to last."""
    codes, units = quantised(x)
    quarter = (last - first) // _STREAMS
    for i in range(first, first + quarter):
        _rows_times(rows, scales, i, quarter, codes, units, out)
    for i in range(first + _STREAMS * quarter, last):
        out[i] = dot(rows, i, i, codes, units) * scales[i]


@njit(**LOOP)
def matvec_of_chosen(rows, scales, x, chosen, first, last, out):
    """out[i] = scales[n] times row n times x, n being ``chosen[i]``, for i from first to last."""
    codes, units = quantised(x)
    for i in range(first, last):
        row = chosen[i]
        out[i] = dot(rows, row, chosen[min(i + _ROWS_AHEAD, last - 1)], codes, units) * scales[row]


@intrinsic
def _times_four(_context, rows, scales, i, step, codes, units, out):
    """out[n] = scales[n] times row n, n being i and three others, each ``step`` on from the one before."""
    need_contiguous(rows, scales, codes, units, out)
    signature = types.void(rows, scales, i, step, codes, units, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        scales, codes, units, out = (pointer(context, builder, signature.args[k], values[k]) for k in (1, 4, 5, 6))
        numbers = [builder.add(values[2], builder.mul(values[3], constant(k))) for k in range(_STREAMS)]
        found = [row_address(context, builder, signature.args[0], values[0], number) for number in numbers]
        starts, columns = [start for start, _ in found], found[0][1]
        asked = [builder.gep(start, [constant(_AHEAD)]) for start in starts]
        for number, product in zip(numbers, _products(builder, starts, asked, columns, codes, units), strict=True):
            scaled = builder.fmul(product, builder.load(builder.gep(scales, [number])))
            builder.store(scaled, builder.gep(out, [number]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _dot(_context, rows, row, later, codes, units):
    """A row times a rounded vector, its scale aside; asks for the row ``later``."""
    need_contiguous(rows, codes, units)
    signature = types.float32(rows, row, later, codes, units)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        codes, units = (pointer(context, builder, signature.args[k], values[k]) for k in (3, 4))
        start, columns = row_address(context, builder, signature.args[0], values[0], values[1])
        asked, _ = row_address(context, builder, signature.args[0], values[0], values[2])
        return _products(builder, [start], [asked], columns, codes, units)[0]

    return signature, generate


def _products(builder: Any, starts: list[Any], asked: list[Any], columns: Any, codes: Any, units: Any) -> list[Any]:
    """Of the rows at ``starts``; as many bytes are asked for at ``asked``."""
    totals = [zeroed(builder, Floats) for _ in starts]
    tails = [zeroed(builder, float32) for _ in starts]
    with cgutils.for_range_slice(builder, constant(0), columns, constant(BLOCK)) as (begin, _):
        unit = builder.load(builder.gep(units, [builder.udiv(begin, constant(BLOCK))]))
        beyond = builder.add(begin, constant(BLOCK))
        end = builder.select(builder.icmp_unsigned("<", beyond, columns), beyond, columns)
        whole = builder.add(begin, builder.and_(builder.sub(end, begin), constant(-_STEP)))
        sums = [zeroed(builder, Ints) for _ in starts]
        with cgutils.for_range_slice(builder, begin, whole, constant(_STEP)) as (at, _):
            for each in asked:
                ask(builder, each, at)
            _multiply(builder, starts, codes, at, sums)
        for total, each in zip(totals, sums, strict=True):
            _add(builder, total, builder.sitofp(builder.load(each), Floats), spread(builder, unit, Floats))
        with cgutils.for_range_slice(builder, whole, end, constant(1)) as (at, _):
            other = builder.sitofp(builder.load(builder.gep(codes, [at])), float32)
            for start, tail in zip(starts, tails, strict=True):
                code = builder.sitofp(builder.load(builder.gep(start, [at])), float32)
                _add(builder, tail, builder.fmul(code, other), unit)
    add_up = external(builder, "llvm.vector.reduce.fadd.v8f32", float32, float32, Floats)
    return [
        builder.call(add_up, [builder.load(tail), builder.load(total)], fastmath=("reassoc",))
        for total, tail in zip(totals, tails, strict=True)
    ]


def _multiply(builder: Any, starts: list[Any], codes: Any, at: Any, sums: list[Any]) -> None:
    """``sums`` += products of ``_STEP`` columns of the rows at ``starts`` from column ``at`` on."""
    add_pairs = external(builder, "llvm.x86.avx2.pmadd.wd", Ints, Shorts, Shorts)
    here = builder.gep(codes, [at])
    places = range(0, _STEP, Shorts.count)
    others = [load(builder, here, Shorts, place) for place in places]
    for start, each in zip(starts, sums, strict=True):
        row, total = builder.gep(start, [at]), builder.load(each)
        for place, other in zip(places, others, strict=True):
            own = builder.sext(load(builder, row, _Codes, place), Shorts)
            total = builder.add(total, builder.call(add_pairs, [own, other]))
        builder.store(total, each)


def _add(builder: Any, variable: Any, one: Any, other: Any) -> None:
    product = builder.fmul(one, other, flags=_LOOSE)
    builder.store(builder.fadd(builder.load(variable), product, flags=_LOOSE), variable)


_rows_times: Any = _times_four
dot: Any = _dot
