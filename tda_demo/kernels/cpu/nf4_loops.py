"""The two loops of ``rows`` for nf4 codes: a row times a vector, and rows added into a vector.

A table of 16 entries is one byte shuffle of an AVX2 processor, which no compiler finds in a loop: there the loops are
written in LLVM's own language. Elsewhere they are plain ones, right and slow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..nf4 import BLOCK, COLUMN_OF, LEVELS, ONE
from .processor import HAS_SHUFFLE
from .vectors import (
    Bytes,
    Floats,
    Ints,
    Shorts,
    constant,
    external,
    float32,
    int8,
    int16,
    int32,
    load,
    need_contiguous,
    pointer,
    vector,
)

# How every loop is compiled. A division that raised where it is by zero, as Python's does, would keep its loop from
# being vectorised: here it gives an infinity.
LOOP: Any = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "nogil": True, "error_model": "numpy", "cache": True}

f32 = np.float32
_X_ONE = 2**13 - 1  # of a quantised vector's largest; a block's sum stays below 2^31 with it: 8 a lane, 14 and 13 bits
_UNIT, _X_UNIT = f32(1 / ONE), f32(_X_ONE)

_LOOSE = ("contract", "reassoc")


@njit(**LOOP)
def quantise(x, blocks):
    """x float32 [columns] as int16 [64 * blocks], zeros at its end, and the value of one unit, float32 [blocks].

    The unit includes that of the levels. The largest of a block becomes 8191, so it is off by 6e-5 of that at most.
    """
    codes, units = np.zeros(blocks * BLOCK, np.int16), np.empty(blocks, f32)
    for b in range(blocks):
        first, last = b * BLOCK, min(b * BLOCK + BLOCK, x.shape[0])
        largest = f32(0)
        for j in range(first, last):
            largest = max(largest, abs(x[j]))
        units[b] = largest / _X_UNIT * _UNIT
        if largest > 0:
            for j in range(first, last):
                codes[j] = np.int16(np.rint(x[j] / largest * _X_UNIT))
    return codes, units


@njit(**LOOP)
def _plain_row_times(codes, scales, i, x, units):
    total = f32(0)
    for b in range(scales.shape[1]):
        block = 0
        for p in range(BLOCK // 2):
            pair = codes[i, b * 32 + p]
            block += np.int64(LEVELS[pair & 15]) * x[b * BLOCK + COLUMN_OF[p]]
            block += np.int64(LEVELS[pair >> 4]) * x[b * BLOCK + COLUMN_OF[p + 32]]
        total += f32(block) * units[b] * scales[i, b]
    return total


@njit(**LOOP)
def _plain_add_row(codes, scales, i, weight, out):
    for b in range(scales.shape[1]):
        factor = weight * scales[i, b]
        for p in range(BLOCK // 2):
            pair = codes[i, b * 32 + p]
            out[b * BLOCK + COLUMN_OF[p]] += factor * f32(LEVELS[pair & 15])
            out[b * BLOCK + COLUMN_OF[p + 32]] += factor * f32(LEVELS[pair >> 4])


@intrinsic
def _shuffled_row_times(_context, codes, scales, i, x, units):
    need_contiguous(codes, scales, x, units)
    signature = types.float32(codes, scales, i, x, units)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row, row_scales, blocks = _row_pointers(context, builder, signature, values)
        vector, vector_units = (pointer(context, builder, signature.args[k], values[k]) for k in (3, 4))
        nothing = ir.Constant(Floats, [0.0] * 8)
        total = cgutils.alloca_once_value(builder, nothing)
        builder.store(nothing, total)  # alloca_once_value sets it at the function's entry, not at each call's
        multiply_add = external(builder, "llvm.x86.avx2.pmadd.wd", Ints, Shorts, Shorts)
        with cgutils.for_range(builder, blocks) as loop:
            levels = _levels(builder, builder.gep(row, [builder.mul(loop.index, constant(32))]))
            here = builder.gep(vector, [builder.mul(loop.index, constant(BLOCK))])
            products = [
                builder.call(multiply_add, [level, load(builder, here, Shorts, 16 * k)])
                for k, level in enumerate(levels)
            ]
            whole = builder.add(builder.add(*products[:2]), builder.add(*products[2:]))
            scale = builder.fmul(
                *(builder.load(builder.gep(each, [loop.index])) for each in (row_scales, vector_units))
            )
            scaled = builder.fmul(_splat(builder, scale), builder.sitofp(whole, Floats), flags=_LOOSE)
            builder.store(builder.fadd(builder.load(total), scaled, flags=_LOOSE), total)
        add_up = external(builder, "llvm.vector.reduce.fadd.v8f32", float32, float32, Floats)
        return builder.call(add_up, [ir.Constant(float32, -0.0), builder.load(total)], fastmath=("reassoc",))

    return signature, generate


@intrinsic
def _shuffled_add_row(_context, codes, scales, i, weight, out):
    need_contiguous(codes, scales, out)
    signature = types.void(codes, scales, i, weight, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row, row_scales, blocks = _row_pointers(context, builder, signature, values)
        out = pointer(context, builder, signature.args[4], values[4])
        with cgutils.for_range(builder, blocks) as loop:
            factor = builder.fmul(values[3], builder.load(builder.gep(row_scales, [loop.index])))
            factors = _splat(builder, factor)
            levels = _levels(builder, builder.gep(row, [builder.mul(loop.index, constant(32))]))
            here = builder.gep(out, [builder.mul(loop.index, constant(BLOCK))])
            for k in range(8):
                half = [8 * (k % 2) + lane for lane in range(8)]
                level = builder.shuffle_vector(levels[k // 2], ir.Constant(Shorts, ir.Undefined), vector(half, int32))
                value = builder.fmul(factors, builder.sitofp(builder.sext(level, Ints), Floats), flags=_LOOSE)
                place = builder.bitcast(builder.gep(here, [constant(8 * k)]), Floats.as_pointer())
                builder.store(builder.fadd(builder.load(place, align=4), value, flags=_LOOSE), place, align=4)
        return context.get_dummy_value()

    return signature, generate


PLAIN: Any = (_plain_row_times, _plain_add_row)
# row_times(codes, scales, i, x, units): row i times a quantised vector. add_row(codes, scales, i, weight, out): out
# [64 * blocks] += weight times row i, in units of the levels.
row_times: Any
add_row: Any
row_times, add_row = (_shuffled_row_times, _shuffled_add_row) if HAS_SHUFFLE else PLAIN


def _levels(builder: Any, block: Any) -> list[Any]:
    """The 64 levels of the 32 bytes at ``block``, in the order of their columns, as four vectors of 16 shorts."""
    shuffle = external(builder, "llvm.x86.avx2.pshuf.b", Bytes, Bytes, Bytes)
    pairs = load(builder, block, Bytes, 0)
    fifteen = vector([15] * 32, int8)
    shifted = builder.lshr(builder.bitcast(pairs, Shorts), vector([4] * 16, int16))
    nibbles = [builder.and_(pairs, fifteen), builder.and_(builder.bitcast(shifted, Bytes), fifteen)]
    tables = [vector(list(half) * 2, int8) for half in LEVELS.view(np.uint8).reshape(16, 2).T]
    found = []
    for each in nibbles:
        low, high = (builder.call(shuffle, [table, each]) for table in tables)
        for start in (0, 8):  # of a 16-byte lane: where its bytes and those of the other half are interleaved from
            order = [lane + start + k + part for lane in (0, 16) for k in range(8) for part in (0, 32)]
            found.append(builder.bitcast(builder.shuffle_vector(low, high, vector(order, int32)), Shorts))
    return found


def _row_pointers(context: Any, builder: Any, signature: Any, values: Any) -> tuple[Any, Any, Any]:
    """Of row ``values[2]``: where its codes and its scales start, and how many blocks it has."""
    codes, scales = (context.make_array(signature.args[k])(context, builder, values[k]) for k in (0, 1))
    blocks = builder.extract_value(scales.shape, 1)
    first_scale = builder.mul(values[2], blocks)
    first_code = builder.mul(first_scale, constant(32))
    return builder.gep(codes.data, [first_code]), builder.gep(scales.data, [first_scale]), blocks


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(Floats, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(int32, 0))
    return builder.shuffle_vector(first, undefined, vector([0] * 8, int32))
