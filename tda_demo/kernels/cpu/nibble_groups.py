"""4-bit columns of 16 neurons added up, times int8 numbers, in whole numbers (``kernels.sketch.SketchedColumns``).

As in ``nibbles``: what an AVX2 processor does with 32 bytes at once, a compiler does not find.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..sketch import CHUNK, COLUMN_OF, GROUP, MIDDLE, X_ONE
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
    spread,
    vector,
)

_X_ONE, _MIDDLE = f32(X_ONE), f32(MIDDLE)
_PAIRS = GROUP // 2
_LOOSE = ("contract", "reassoc")


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
def _plain_add_group(codes, group, whole, unit, out):
    for chunk in range(codes.shape[1]):
        for k in range(CHUNK):
            total = np.int32(0)
            for pair in range(_PAIRS):
                both = codes[group, chunk, pair, k]
                total += np.int32(both & 15) * whole[2 * pair] + np.int32(both >> 4) * whole[2 * pair + 1]
            out[chunk * CHUNK + COLUMN_OF[k]] += unit * f32(total)


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
        first_halves = [part + i + 32 * high for part in (0, 16) for i in range(8) for high in (0, 1)]
        second_halves = [place + 8 for place in first_halves]
        weights = [
            builder.bitcast(spread(builder, _pair(builder, whole.data, p), Shorts), Bytes) for p in range(_PAIRS)
        ]
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
                for half, places in enumerate((first_halves, second_halves)):
                    mixed = builder.shuffle_vector(low, high, vector(places, int32))
                    product = builder.call(by_pairs, [mixed, weight])
                    sums[half] = product if sums[half] is None else builder.add(sums[half], product)
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


PLAIN: Any = _plain_add_group
add_group: Any = _paired_add_group if HAS_SHUFFLE else PLAIN
