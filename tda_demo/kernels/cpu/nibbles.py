"""Row times vector for 4-bit codes and an int8 vector, in whole numbers (``kernels.sketch``).

An AVX2 processor multiplies 32 bytes at once and adds them in pairs; a compiler does not find that in a loop, so there
it is written in LLVM's own language. Elsewhere it is a plain loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..sketch import BLOCK, X_ONE
from .nf4_loops import FAST, HAS_SHUFFLE, f32
from .vectors import Bytes, Ints, Shorts, constant, external, int32, load, need_contiguous, pointer, vector

_X_ONE = f32(X_ONE)
_HALF = BLOCK // 2


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
def _plain_row_times(codes, i, x):
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


PLAIN: Any = _plain_row_times
row_times: Any = _paired_row_times if HAS_SHUFFLE else PLAIN
