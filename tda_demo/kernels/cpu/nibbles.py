"""Products of the sketch's 4-bit codes with int8 numbers, in whole numbers (``kernels.sketch``).

Rows of gate and up times a vector (``SketchedRows``), and columns of down added up 16 neurons at a time
(``SketchedColumns``). An AVX2 processor multiplies 32 bytes at once and adds them in pairs; a compiler does not find
that in a loop, so there it is written in LLVM's own language. Elsewhere it is a plain loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..sketch import BLOCK, CHUNK, GROUP, MIDDLE, X_ONE
from .nf4_loops import FAST, HAS_SHUFFLE, f32
from .vectors import (
    Bytes,
    Floats,
    Ints,
    Shorts,
    constant,
    external,
    int16,
    int32,
    load,
    need_contiguous,
    pointer,
    spread,
    vector,
)

_X_ONE, _MIDDLE = f32(X_ONE), f32(MIDDLE)
_HALF = BLOCK // 2
_PAIRS = GROUP // 2
_LOOSE = ("contract", "reassoc")


@njit(fastmath=FAST, nogil=True)
def quantise(x, codes):
    """x float32 [columns] into ``codes`` int8 [columns filled up]: the value of a unit, and the sum of the codes."""
    largest = f32(1e-30)
    for j in range(x.shape[0]):
        largest = max(largest, abs(x[j]))
    inverse, total = _X_ONE / largest, np.int32(0)
    for j in range(x.shape[0]):
        whole = np.int8(np.rint(x[j] * inverse))
        codes[j] = whole
        total += np.int32(whole)
    return largest / _X_ONE, total


@njit(nogil=True)
def plain_row_times(codes, i, x):
    total = np.int32(0)
    for p in range(codes.shape[1]):
        column = p // _HALF * BLOCK + p % _HALF
        total += np.int32(codes[i, p] & 15) * x[column] + np.int32(codes[i, p] >> 4) * x[column + _HALF]
    return total


@intrinsic
def _paired_row_times(_context, codes, i, x):
    need_contiguous(codes, x)
    signature = types.int32(codes, i, x)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        width = builder.extract_value(array.shape, 1)
        row = builder.gep(array.data, [builder.mul(values[1], width)])
        x = pointer(context, builder, signature.args[2], values[2])
        total = cgutils.alloca_once(builder, Ints)
        builder.store(ir.Constant(Ints, [0] * 8), total)
        by_pairs = external(builder, "llvm.x86.avx2.pmadd.ub.sw", Shorts, Bytes, Bytes)
        add_pairs = external(builder, "llvm.x86.avx2.pmadd.wd", Ints, Shorts, Shorts)
        fifteen, ones = vector([15] * 32, Bytes.element), vector([1] * 16, Shorts.element)

        def products(block: Any) -> Any:
            """Of a block, 16 sums of four products of at most 15 * 127 each."""
            pairs = load(builder, builder.gep(row, [builder.mul(block, constant(_HALF))]), Bytes, 0)
            shifted = builder.lshr(builder.bitcast(pairs, Shorts), vector([4] * 16, Shorts.element))
            low, high = builder.and_(pairs, fifteen), builder.and_(builder.bitcast(shifted, Bytes), fifteen)
            here = builder.gep(x, [builder.mul(block, constant(BLOCK))])
            return builder.add(
                builder.call(by_pairs, [low, load(builder, here, Bytes, 0)]),
                builder.call(by_pairs, [high, load(builder, here, Bytes, _HALF)]),
            )

        def add(shorts: Any) -> None:
            builder.store(builder.add(builder.load(total), builder.call(add_pairs, [shorts, ones])), total)

        blocks = builder.udiv(width, constant(_HALF))
        fours = builder.mul(builder.udiv(blocks, constant(4)), constant(4))
        with cgutils.for_range_slice(builder, constant(0), fours, constant(4)) as (first, _):
            four = [products(builder.add(first, constant(each))) for each in range(4)]  # their sum is below 2^15
            add(builder.add(builder.add(four[0], four[1]), builder.add(four[2], four[3])))
        with cgutils.for_range_slice(builder, fours, blocks, constant(1)) as (block, _):
            add(products(block))
        add_up = external(builder, "llvm.vector.reduce.add.v8i32", int32, Ints)
        return builder.call(add_up, [builder.load(total)])

    return signature, generate


row_times: Any = _paired_row_times if HAS_SHUFFLE else plain_row_times


@njit(fastmath=FAST, nogil=True)
def add_groups(codes, first_group, start, first, last, weights, out):
    """out += the neurons ``first`` to ``last`` of a layer times ``weights``, their scales included.

    The layer's neurons begin at ``start``, its groups of 16 at ``codes[first_group]``. ``weights`` float32 is theirs,
    place by place from ``first`` on; ``out`` float32 [columns filled up to 32].
    """
    whole, below = np.zeros(GROUP, np.int8), f32(0)
    for group in range((first - start) // GROUP, (last - start + GROUP - 1) // GROUP):
        begin, end = start + group * GROUP, start + (group + 1) * GROUP
        largest = f32(0)
        for i in range(max(first, begin), min(last, end)):
            largest = max(largest, abs(weights[i - first]))
        if largest > 0:
            inverse, total = _X_ONE / largest, np.int32(0)
            for i in range(GROUP):
                whole[i] = 0
            for i in range(max(first, begin), min(last, end)):
                code = np.int8(np.rint(weights[i - first] * inverse))
                whole[i - begin] = code
                total += np.int32(code)
            unit = largest / _X_ONE
            add_group(codes, first_group + group, whole, unit, out)
            below += unit * f32(total)
    for j in range(out.shape[0]):
        out[j] -= _MIDDLE * below


@njit(fastmath=FAST, nogil=True)
def plain_add_group(codes, group, whole, unit, out):
    for chunk in range(codes.shape[1]):
        for column in range(CHUNK // 2):
            low, high = np.int32(0), np.int32(0)
            for neuron in range(GROUP):
                both = codes[group, chunk, neuron // 2, 2 * column + neuron % 2]
                low += np.int32(both & 15) * whole[neuron]
                high += np.int32(both >> 4) * whole[neuron]
            out[chunk * CHUNK + column] += unit * f32(low)
            out[chunk * CHUNK + CHUNK // 2 + column] += unit * f32(high)


@intrinsic
def _paired_add_group(_context, codes, group, whole, unit, out):
    need_contiguous(codes, whole, out)
    signature = types.void(codes, group, whole, unit, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def array(at: int) -> Any:
            return context.make_array(signature.args[at])(context, builder, values[at])

        codes, whole, out = array(0), array(2), array(4)
        chunks = builder.extract_value(codes.shape, 1)
        size = constant(_PAIRS * CHUNK)
        here = builder.gep(codes.data, [builder.mul(builder.mul(values[1], chunks), size)])
        by_pairs = external(builder, "llvm.x86.avx2.pmadd.ub.sw", Shorts, Bytes, Bytes)
        fifteen, four = vector([15] * 32, Bytes.element), vector([4] * 16, Shorts.element)
        pairs = [_pair(builder, whole.data, pair) for pair in range(_PAIRS)]
        weights = [builder.bitcast(spread(builder, pair, Shorts), Bytes) for pair in pairs]
        units = spread(builder, values[3], Floats)
        with cgutils.for_range(builder, chunks) as loop:
            chunk = builder.gep(here, [builder.mul(loop.index, size)])
            sums: list[Any] = [None, None]
            for pair, weight in enumerate(weights):
                both = load(builder, chunk, Bytes, pair * CHUNK)
                low = builder.and_(both, fifteen)
                shifted = builder.bitcast(builder.lshr(builder.bitcast(both, Shorts), four), Bytes)
                high = builder.and_(shifted, fifteen)
                # Of 16 products of at most 15 * 127 each: a sum is below 2^15.
                products = (builder.call(by_pairs, [part, weight]) for part in (low, high))
                sums = [new if old is None else builder.add(old, new) for old, new in zip(sums, products, strict=True)]
            for half, total in enumerate(sums):
                for part in range(2):
                    eight = builder.shuffle_vector(total, total, vector([8 * part + i for i in range(8)], int32))
                    numbers = builder.sitofp(builder.sext(eight, Ints), Floats)
                    offset = builder.add(builder.mul(loop.index, constant(CHUNK)), constant(16 * half + 8 * part))
                    place = builder.bitcast(builder.gep(out.data, [offset]), Floats.as_pointer())
                    added = builder.fmul(numbers, units, flags=_LOOSE)
                    builder.store(builder.fadd(builder.load(place, align=4), added, flags=_LOOSE), place, align=4)
        return context.get_dummy_value()

    return signature, generate


def _pair(builder: Any, whole: Any, pair: int) -> Any:
    """Two neighbouring int8 as one int16."""
    return builder.load(builder.bitcast(builder.gep(whole, [constant(2 * pair)]), int16.as_pointer()), align=1)


add_group: Any = _paired_add_group if HAS_SHUFFLE else plain_add_group
