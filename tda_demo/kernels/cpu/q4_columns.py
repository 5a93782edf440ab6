"""Columns of the low-bit copy (``kernels.q4``) added up 16 neurons at a time, and copies of some of them.

Products of activations and scales are rounded to int8, one unit for 16 neurons and 32 columns. What rounding takes from
them is put back for a code in the middle, so it counts for half the spread of the codes only. The loops are written in
LLVM's own language, or plain ones, as those over rows are (``q4_rows``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..q4 import GROUP, LEVELS, TILE, TILE_BYTES, X_ONE
from .nf4_loops import FAST, HAS_SHUFFLE, f32
from .q4_rows import from_half
from .vectors import (
    LINE,
    Bytes,
    Floats,
    Ints,
    Shorts,
    ask,
    constant,
    external,
    float32,
    int8,
    int16,
    int32,
    load,
    need_contiguous,
    nibbles,
    pointer,
    spread,
    vector,
)

_X_ONE, _LEAST, _MIDDLE = f32(X_ONE), f32(1e-30), f32(LEVELS / 2)
_HALF = GROUP // 2
_TILE_CODES = TILE * _HALF
_PAIRS = TILE // 2
_LOOSE = ("contract", "reassoc")

_Halves = ir.VectorType(ir.HalfType(), 8)


@njit(fastmath=FAST, nogil=True)
def add_columns(tiles, first, last, activations, out):
    """out += the sum over tiles first to last of their neurons' columns times ``activations``.

    ``activations`` float32 begin with the first tile's and are whole tiles', ``out`` float32 [columns filled up to 32].
    """
    chunks = tiles.shape[1]
    sums, weights, units = np.zeros((chunks, _PAIRS), f32), np.empty((chunks, 2 * TILE), np.int8), np.empty(chunks, f32)
    for tile in range(first, last):
        add_tile(tiles, tile, activations, (tile - first) * TILE, sums, weights, units, out)
    for chunk in range(chunks):
        base = f32(0)
        for k in range(_PAIRS):
            base += sums[chunk, k]
        for j in range(chunk * GROUP, (chunk + 1) * GROUP):
            out[j] += base


@njit(fastmath=FAST, nogil=True)
def plain_add_tile(tiles, tile, activations, at, sums, _weights, _units, out):
    weights, whole = np.empty(TILE, f32), np.empty(TILE, np.int32)
    for chunk in range(tiles.shape[1]):
        here = tiles[tile, chunk]
        largest = f32(1e-30)
        for n in range(TILE):
            place = _TILE_CODES + 2 * n
            weights[n] = activations[at + n] * from_half(here[place], here[place + 1])
            largest = max(largest, abs(weights[n]))
        inverse, unit = _X_ONE / largest, largest / _X_ONE
        for n in range(TILE):
            place = _TILE_CODES + 2 * (TILE + n)
            whole[n] = np.int32(np.rint(weights[n] * inverse))
            sums[chunk, n % _PAIRS] += activations[at + n] * from_half(here[place], here[place + 1])
            sums[chunk, n % _PAIRS] += _MIDDLE * (weights[n] - unit * f32(whole[n]))
        for j in range(_HALF):
            low, high = np.int32(0), np.int32(0)
            for n in range(TILE):
                both = here[n // 2 * GROUP + 2 * j + n % 2]
                low += np.int32(both & 15) * whole[n]
                high += np.int32(both >> 4) * whole[n]
            out[chunk * GROUP + j] += unit * f32(low)
            out[chunk * GROUP + _HALF + j] += unit * f32(high)


@njit(parallel=True, nogil=True, cache=True)
def gather_columns(tiles, chosen, threads, out):
    """Copies of the columns of the neurons ``chosen`` int64 [k] into new tiles ``out``, filled up with zeros.

    Both are uint16 [tiles, chunks, 160]: two bytes of codes belong to two neurons that lie side by side.
    """
    count = len(chosen)
    for t in prange(threads):
        for tile in range(len(out) * t // threads, len(out) * (t + 1) // threads):
            first = tile * TILE
            if first + TILE > count:
                out[tile] = 0
            for n in range(first, min(first + TILE, count)):
                _copy_column(tiles[chosen[n] // TILE], chosen[n] % TILE, n % TILE, out[tile])


@njit(nogil=True)
def _copy_column(source, neuron, place, target):
    """Neuron ``neuron`` of a tile as number ``place`` of another one, whose pair is begun by its even neuron."""
    lane, shift = np.uint16(0xFF), np.uint16(8)
    for chunk in range(source.shape[0]):
        codes, copies = source[chunk], target[chunk]
        pair, copied = neuron // 2 * _HALF, place // 2 * _HALF
        for j in range(_HALF):
            both = codes[pair + j]
            mine = both >> shift if neuron % 2 else both & lane
            copies[copied + j] = copies[copied + j] | (mine << shift) if place % 2 else mine
        for which in range(2):
            numbers = _TILE_CODES // 2 + which * TILE
            copies[numbers + place] = codes[numbers + neuron]


@intrinsic
def _fast_add_tile(_context, tiles, tile, activations, at, sums, weights, units, out):
    need_contiguous(tiles, activations, sums, weights, units, out)
    signature = types.void(tiles, tile, activations, at, sums, weights, units, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        chunks = builder.extract_value(array.shape, 1)
        length = builder.mul(chunks, constant(TILE_BYTES))
        start = builder.gep(array.data, [builder.mul(values[1], length)])
        places = (pointer(context, builder, signature.args[k], values[k]) for k in (2, 4, 5, 6, 7))
        activations, sums, weights, units, out = places
        two = [load(builder, builder.gep(activations, [values[3]]), Floats, at) for at in (0, 8)]
        # In a loop of its own, where those of several chunks overlap: each is a long chain.
        with cgutils.for_range(builder, chunks) as loop:
            chunk = builder.gep(start, [builder.mul(loop.index, constant(TILE_BYTES))])
            whole, unit, base = _weights(builder, chunk, two)
            builder.store(unit, builder.gep(units, [loop.index]))
            _add_to(builder, sums, builder.mul(loop.index, constant(8)), base)
            pairs = builder.bitcast(whole, ir.VectorType(int16, _PAIRS))
            for half in range(2):  # a pair twice, which the loop below has spread as it loads it
                twice = vector([half * 4 + k // 2 for k in range(8)], int32)
                place = builder.gep(
                    weights, [builder.add(builder.mul(loop.index, constant(2 * TILE)), constant(half * TILE))]
                )
                eight = builder.shuffle_vector(pairs, pairs, twice)
                builder.store(eight, builder.bitcast(place, eight.type.as_pointer()), align=1)
        by_pairs = external(builder, "llvm.x86.avx2.pmadd.ub.sw", Shorts, Bytes, Bytes)
        with cgutils.for_range(builder, chunks) as loop:
            offset = builder.mul(loop.index, constant(TILE_BYTES))
            chunk = builder.gep(start, [offset])
            for line in range(0, TILE_BYTES, LINE):
                ask(builder, start, builder.add(builder.add(offset, length), constant(line)))
            here = builder.gep(weights, [builder.mul(loop.index, constant(2 * TILE))])
            totals: list[Any] = [None, None]
            for pair in range(_PAIRS):
                twice = builder.load(
                    builder.bitcast(builder.gep(here, [constant(4 * pair)]), int32.as_pointer()), align=1
                )
                weight = builder.bitcast(spread(builder, twice, Ints), Bytes)
                parts = nibbles(builder, load(builder, chunk, Bytes, pair * GROUP))
                # Of 16 products of at most 15 * 127 each: a sum is below 2^15.
                products = [builder.call(by_pairs, [part, weight]) for part in parts]
                totals = [
                    new if old is None else builder.add(old, new) for old, new in zip(totals, products, strict=True)
                ]
            unit = spread(builder, builder.load(builder.gep(units, [loop.index])), Floats)
            for half, total in enumerate(totals):
                for part in range(2):
                    eight = builder.shuffle_vector(total, total, vector([8 * part + i for i in range(8)], int32))
                    numbers = builder.sitofp(builder.sext(eight, Ints), Floats)
                    index = builder.add(builder.mul(loop.index, constant(GROUP)), constant(_HALF * half + 8 * part))
                    _add_to(builder, out, index, builder.fmul(numbers, unit, flags=_LOOSE))
        return context.get_dummy_value()

    return signature, generate


def _add_to(builder: Any, array: Any, at: Any, numbers: Any) -> None:
    place = builder.bitcast(builder.gep(array, [at]), Floats.as_pointer())
    builder.store(builder.fadd(builder.load(place, align=4), numbers, flags=_LOOSE), place, align=4)


def _weights(builder: Any, chunk: Any, activations: list[Any]) -> tuple[Any, Any, Any]:
    """Of a tile's products of activation and scale: 16 int8, what a unit is worth, and the sums that lack no codes."""
    numbers = [builder.fpext(load(builder, chunk, _Halves, _TILE_CODES + 16 * k), Floats) for k in range(4)]
    weights = [builder.fmul(a, scale, flags=_LOOSE) for a, scale in zip(activations, numbers[:2], strict=True)]
    magnitude = external(builder, "llvm.fabs.v8f32", Floats, Floats)
    one, other = (builder.call(magnitude, [weight]) for weight in weights)
    larger = builder.select(builder.fcmp_ordered(">", one, other), one, other)
    most = external(builder, "llvm.vector.reduce.fmax.v8f32", float32, Floats)
    largest = builder.call(most, [larger], fastmath=("nnan", "nsz"))
    least = ir.Constant(float32, float(f32(1e-30)))
    largest = builder.select(builder.fcmp_ordered(">", largest, least), largest, least)
    one = ir.Constant(float32, float(X_ONE))
    inverse, unit = builder.fdiv(one, largest), builder.fmul(largest, ir.Constant(float32, float(f32(1 / X_ONE))))
    to_whole = external(builder, "llvm.x86.avx.cvt.ps2dq.256", Ints, Floats)
    inverses, units = spread(builder, inverse, Floats), spread(builder, unit, Floats)
    middles = ir.Constant(Floats, [float(_MIDDLE)] * 8)
    wholes, base = [], None
    for a, weight, minimum in zip(activations, weights, numbers[2:], strict=True):
        whole = builder.call(to_whole, [builder.fmul(weight, inverses)])
        wholes.append(whole)
        left = builder.fsub(weight, builder.fmul(units, builder.sitofp(whole, Floats), flags=_LOOSE), flags=_LOOSE)
        part = builder.fadd(
            builder.fmul(a, minimum, flags=_LOOSE), builder.fmul(left, middles, flags=_LOOSE), flags=_LOOSE
        )
        base = part if base is None else builder.fadd(base, part, flags=_LOOSE)
    return _packed(builder, wholes), unit, base


def _packed(builder: Any, wholes: list[Any]) -> Any:
    """Two vectors of eight ints that are int8 as one of 16."""
    four, eight = ir.VectorType(int32, 4), ir.VectorType(int16, 8)
    to_shorts = external(builder, "llvm.x86.sse2.packssdw.128", eight, four, four)
    to_bytes = external(builder, "llvm.x86.sse2.packsswb.128", ir.VectorType(int8, 16), eight, eight)
    halves = [
        [builder.shuffle_vector(whole, whole, vector([4 * k + i for i in range(4)], int32)) for k in range(2)]
        for whole in wholes
    ]
    return builder.call(to_bytes, [builder.call(to_shorts, pair) for pair in halves])


add_tile: Any = _fast_add_tile if HAS_SHUFFLE else plain_add_tile
