"""Columns of the low-bit copy (``kernels.q4``) added up 32 neurons at a time, and copies of some of them.

Products of activations and scales are rounded to int8, one unit for 32 neurons and 32 columns: a 127th of the largest
of them, or more where so many are so large that their sums with codes would not fit 16 bits. What rounding takes from
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

from ..q4_sizes import GROUP, LEVELS, TILE, TILE_BYTES, X_ONE
from .nf4_loops import HAS_SHUFFLE, LOOP, f32
from .partition import share
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
    int32,
    larger,
    load,
    need_contiguous,
    nibbles,
    pointer,
    spread,
    vector,
)

_X_ONE, _LEAST, _MIDDLE = f32(X_ONE), f32(1e-30), f32(LEVELS / 2)
# A sum of products is at most LEVELS times that of the rounded weights, each of them off by half.
_MOST = f32((2**15 - 1) // LEVELS - TILE // 2)
_HALF = GROUP // 2
_TILE_CODES = TILE * _HALF
_LANES = Floats.count
_LOOSE = ("contract", "reassoc")

_Halves = ir.VectorType(ir.HalfType(), 8)


@njit(**LOOP)
def add_columns(tiles, first, last, activations, out):
    """out += the sum over tiles first to last of their neurons' columns times ``activations``.

    ``activations`` float32 begin with the first tile's and are whole tiles', ``out`` float32 [columns filled up to 32].
    """
    chunks = tiles.shape[1]
    sums, weights = np.zeros((chunks, _LANES), f32), np.empty(2 * TILE, np.int8)
    for tile in range(first, last):
        add_tile(tiles, tile, activations, (tile - first) * TILE, sums, weights, out)
    for chunk in range(chunks):
        base = f32(0)
        for k in range(_LANES):
            base += sums[chunk, k]
        for j in range(chunk * GROUP, (chunk + 1) * GROUP):
            out[j] += base


@njit(**LOOP)
def plain_add_tile(tiles, tile, activations, at, sums, _weights, out):
    weights, whole = np.empty(TILE, f32), np.empty(TILE, np.int32)
    for chunk in range(tiles.shape[1]):
        here = tiles[tile, chunk]
        largest, total = _LEAST, f32(0)
        for n in range(TILE):
            place = _TILE_CODES + 2 * n
            weights[n] = activations[at + n] * from_half(here[place], here[place + 1])
            largest = max(largest, abs(weights[n]))
            total += abs(weights[n])
        unit = max(largest / _X_ONE, total / _MOST)
        for n in range(TILE):
            place = _TILE_CODES + 2 * (TILE + n)
            whole[n] = np.int32(np.rint(weights[n] / unit))
            sums[chunk, n % _LANES] += activations[at + n] * from_half(here[place], here[place + 1])
            sums[chunk, n % _LANES] += _MIDDLE * (weights[n] - unit * f32(whole[n]))
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

    Both are uint16 [tiles, chunks, 320]: two bytes of codes belong to two neurons that lie side by side.
    """
    count = len(chosen)
    for t in prange(threads):
        begin, end = share(len(out), t, threads)
        for tile in range(begin, end):
            first = tile * TILE
            if first + TILE > count:
                out[tile] = 0
            for n in range(first, min(first + TILE, count)):
                _copy_column(tiles[chosen[n] // TILE], chosen[n] % TILE, n % TILE, out[tile])


@njit(nogil=True, cache=True)
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
def _fast_add_tile(_context, tiles, tile, activations, at, sums, weights, out):
    need_contiguous(tiles, activations, sums, weights, out)
    signature = types.void(tiles, tile, activations, at, sums, weights, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        chunks = builder.extract_value(array.shape, 1)
        length = builder.mul(chunks, constant(TILE_BYTES))
        start = builder.gep(array.data, [builder.mul(values[1], length)])
        places = (pointer(context, builder, signature.args[k], values[k]) for k in (2, 4, 5, 6))
        activations, sums, weights, out = places
        begun = builder.gep(activations, [values[3]])
        numbers = [load(builder, begun, Floats, _LANES * k) for k in range(TILE // _LANES)]
        with cgutils.for_range(builder, chunks) as loop:
            offset = builder.mul(loop.index, constant(TILE_BYTES))
            chunk = builder.gep(start, [offset])
            for line in range(0, TILE_BYTES, LINE):
                ask(builder, start, builder.add(builder.add(offset, length), constant(line)))
            wholes, unit, base = _weights(builder, chunk, numbers)
            _add_to(builder, sums, builder.mul(loop.index, constant(_LANES)), base)
            for k, part in enumerate(_twice(builder, wholes)):
                place = builder.gep(weights, [constant(GROUP * k)])
                builder.store(part, builder.bitcast(place, part.type.as_pointer()), align=1)
            totals = _products(builder, chunk, weights)
            unit = spread(builder, unit, Floats)
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


def _weights(builder: Any, chunk: Any, activations: list[Any]) -> tuple[list[Any], Any, Any]:
    """Of a tile's products of activation and scale: ints, what a unit is worth, and the sums that lack no codes."""
    scales, minima = (
        [
            builder.fpext(load(builder, chunk, _Halves, _TILE_CODES + 2 * (TILE * which + _LANES * part)), Floats)
            for part in range(TILE // _LANES)
        ]
        for which in range(2)
    )
    weights = [builder.fmul(a, scale, flags=_LOOSE) for a, scale in zip(activations, scales, strict=True)]
    magnitude = external(builder, "llvm.fabs.v8f32", Floats, Floats)
    sizes = [builder.call(magnitude, [weight]) for weight in weights]
    largest = sizes[0]
    for size in sizes[1:]:
        largest = builder.select(builder.fcmp_ordered(">", size, largest), size, largest)
    most = external(builder, "llvm.vector.reduce.fmax.v8f32", float32, Floats)
    add_up = external(builder, "llvm.vector.reduce.fadd.v8f32", float32, float32, Floats)
    largest = builder.call(most, [largest], fastmath=("nnan", "nsz"))
    total = builder.call(add_up, [ir.Constant(float32, 0.0), _sum(builder, sizes)], fastmath=("reassoc",))
    least = larger(builder, largest, ir.Constant(float32, float(_LEAST)))
    unit = builder.fmul(least, ir.Constant(float32, float(f32(1 / X_ONE))))
    unit = larger(builder, unit, builder.fmul(total, ir.Constant(float32, float(f32(1 / _MOST)))))
    inverses = spread(builder, builder.fdiv(ir.Constant(float32, 1.0), unit), Floats)
    to_whole = external(builder, "llvm.x86.avx.cvt.ps2dq.256", Ints, Floats)
    wholes = [builder.call(to_whole, [builder.fmul(weight, inverses)]) for weight in weights]
    whole = wholes[0]
    for other in wholes[1:]:
        whole = builder.add(whole, other)
    counted = builder.fmul(spread(builder, unit, Floats), builder.sitofp(whole, Floats), flags=_LOOSE)
    left = builder.fsub(_sum(builder, weights), counted, flags=_LOOSE)
    products = [builder.fmul(a, minimum, flags=_LOOSE) for a, minimum in zip(activations, minima, strict=True)]
    middles = ir.Constant(Floats, [float(_MIDDLE)] * 8)
    return wholes, unit, builder.fadd(_sum(builder, products), builder.fmul(left, middles, flags=_LOOSE), flags=_LOOSE)


def _sum(builder: Any, vectors: list[Any]) -> Any:
    total = vectors[0]
    for other in vectors[1:]:
        total = builder.fadd(total, other, flags=_LOOSE)
    return total


_TWICE = ([0, 0, 1, 1, 2, 2, 3, 3], [4, 4, 5, 5, 6, 6, 7, 7])  # 16 bits each, of either half of a vector
_PLACES = (0, 1, 4, 5, 2, 3, 6, 7)  # where the pairs of 16 neurons then are


def _twice(builder: Any, wholes: list[Any]) -> list[Any]:
    """A vector for 16 neurons, their ints as int8, each pair twice: a load spreads it over a line of codes."""
    to_shorts = external(builder, "llvm.x86.avx2.packssdw", Shorts, Ints, Ints)
    to_bytes = external(builder, "llvm.x86.avx2.packsswb", Bytes, Shorts, Shorts)
    sixteens = [builder.call(to_shorts, wholes[k : k + 2]) for k in range(0, len(wholes), 2)]
    parts = []
    for k in range(0, len(sixteens), 2):
        both = builder.bitcast(builder.call(to_bytes, sixteens[k : k + 2]), Shorts)
        for lanes in _TWICE:
            pairs = vector([*lanes, *(8 + lane for lane in lanes)], int32)
            parts.append(builder.shuffle_vector(both, both, pairs))
    return parts


def _products(builder: Any, chunk: Any, weights: Any) -> list[Any]:
    """Sums over a tile's neurons for its first 16 outputs, and for the others."""
    by_pairs = external(builder, "llvm.x86.avx2.pmadd.ub.sw", Shorts, Bytes, Bytes)
    totals: list[Any] = [None, None]
    for pair in range(TILE // 2):
        place = constant(GROUP * (pair // 8) + 4 * _PLACES[pair % 8])
        twice = builder.load(builder.bitcast(builder.gep(weights, [place]), int32.as_pointer()), align=1)
        weight = builder.bitcast(spread(builder, twice, Ints), Bytes)
        parts = nibbles(builder, load(builder, chunk, Bytes, pair * GROUP))
        products = [builder.call(by_pairs, [part, weight]) for part in parts]
        totals = [new if old is None else builder.add(old, new) for old, new in zip(totals, products, strict=True)]
    return totals


add_tile: Any = _fast_add_tile if HAS_SHUFFLE else plain_add_tile
