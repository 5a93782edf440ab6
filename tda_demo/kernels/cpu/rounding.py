"""Vectors of floats rounded to whole numbers, of an AVX2 processor: what every product of whole numbers begins with.

No compiler finds these loops, and each product waits for its own: plain ones took up to 1 µs of 576 numbers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vectors import (
    Bytes,
    Floats,
    Ints,
    Shorts,
    constant,
    external,
    float32,
    int32,
    larger,
    load,
    need_contiguous,
    pointer,
    spread,
    vector,
)

_STEP = 32  # numbers at once
_LANES = Floats.count


@intrinsic
def _largest(_context, x, first, last):
    """The largest size, float32, of the numbers from ``first`` to ``last``, a multiple of 32 of them."""
    need_contiguous(x)
    signature = types.float32(x, first, last)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x = pointer(context, builder, signature.args[0], values[0])
        found = [cgutils.alloca_once(builder, Floats) for _ in range(_STEP // _LANES)]
        for each in found:
            builder.store(ir.Constant(Floats, None), each)
        with cgutils.for_range_slice(builder, values[1], values[2], constant(_STEP)) as (at, _):
            for each, numbers in zip(found, _numbers(builder, x, at), strict=True):
                builder.store(larger(builder, _sizes(builder, numbers), builder.load(each)), each)
        return _most(builder, [builder.load(each) for each in found])

    return signature, generate


@intrinsic
def _to_shorts(_context, x, first, last, inverse, codes):
    """``codes`` int16 = x * ``inverse``, rounded, from ``first`` to ``last``, a multiple of 32 of them."""
    need_contiguous(x, codes)
    signature = types.void(x, first, last, inverse, codes)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, codes = (pointer(context, builder, signature.args[k], values[k]) for k in (0, 4))
        inverse = spread(builder, values[3], Floats)
        in_order = vector([0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15], int32)
        with cgutils.for_range_slice(builder, values[1], values[2], constant(_STEP)) as (at, _):
            for k, packed in enumerate(_shorts(builder, _whole(builder, _numbers(builder, x, at), inverse))):
                place = builder.gep(codes, [builder.add(at, constant(Shorts.count * k))])
                ordered = builder.shuffle_vector(packed, packed, in_order)
                builder.store(ordered, builder.bitcast(place, Shorts.as_pointer()), align=2)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _to_bytes(_context, x, first, most, codes, place):
    """32 numbers from ``first`` on, the largest of them as ``most``: 16 int8 at ``place`` of ``codes``, 16 at 32 on.

    Returns the largest size and the sum of what was stored.
    """
    need_contiguous(x, codes)
    result = types.UniTuple(types.float32, 2)
    signature = result(x, first, most, codes, place)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, codes = (pointer(context, builder, signature.args[k], values[k]) for k in (0, 3))
        numbers = _numbers(builder, x, values[1])
        largest = _most(builder, [_sizes(builder, each) for each in numbers])
        least = ir.Constant(float32, 1e-30)
        divisor = builder.select(builder.fcmp_ordered(">", largest, least), largest, least)
        whole = _whole(builder, numbers, spread(builder, builder.fdiv(values[2], divisor), Floats))
        to_bytes = external(builder, "llvm.x86.avx2.packsswb", Bytes, Shorts, Shorts)
        packed = builder.bitcast(builder.call(to_bytes, _shorts(builder, whole)), Ints)
        for half in range(2):
            ordered = builder.shuffle_vector(packed, packed, vector([lane + 2 * half for lane in (0, 4, 1, 5)], int32))
            target = builder.gep(codes, [builder.add(values[4], constant(_STEP * half))])
            builder.store(ordered, builder.bitcast(target, ordered.type.as_pointer()), align=1)
        total = whole[0]
        for other in whole[1:]:
            total = builder.add(total, other)
        add_up = external(builder, "llvm.vector.reduce.add.v8i32", int32, Ints)
        told = [largest, builder.sitofp(builder.call(add_up, [total]), float32)]
        return context.make_tuple(builder, signature.return_type, told)

    return signature, generate


def _numbers(builder: Any, x: Any, at: Any) -> list[Any]:
    here = builder.gep(x, [at])
    return [load(builder, here, Floats, place) for place in range(0, _STEP, _LANES)]


def _sizes(builder: Any, numbers: Any) -> Any:
    return builder.call(external(builder, "llvm.fabs.v8f32", Floats, Floats), [numbers])


def _most(builder: Any, vectors: list[Any]) -> Any:
    """The largest of four vectors' numbers."""
    first, second, third, fourth = vectors
    found = larger(builder, larger(builder, first, second), larger(builder, third, fourth))
    most = external(builder, "llvm.vector.reduce.fmax.v8f32", float32, Floats)
    return builder.call(most, [found], fastmath=("nnan", "nsz"))


def _whole(builder: Any, numbers: list[Any], inverse: Any) -> list[Any]:
    to_whole = external(builder, "llvm.x86.avx.cvt.ps2dq.256", Ints, Floats)
    return [builder.call(to_whole, [builder.fmul(each, inverse)]) for each in numbers]


def _shorts(builder: Any, whole: list[Any]) -> list[Any]:
    """Two vectors of 16, each in the order 0 to 3 of one, of the next, 4 to 7 of one, of the next."""
    pack = external(builder, "llvm.x86.avx2.packssdw", Shorts, Ints, Ints)
    return [builder.call(pack, whole[k : k + 2]) for k in (0, 2)]


largest: Any = _largest
to_shorts: Any = _to_shorts
to_bytes: Any = _to_bytes
