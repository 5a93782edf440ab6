"""Rows of the low-bit format (``kernels.q4``) times several vectors at once, as a prompt's tokens are.

Vectors are rounded to 16 bits (``int8_rows``), not to the 8 of a single one (``q4_rows``): bound by arithmetic, not by
bytes, that costs a quarter more, and a prompt is read as exactly as floats would. A record's codes, scales and minima
are taken apart once for four tokens, and stay in the processor's first cache while all tokens pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..q4_sizes import GROUP, RECORD, RECORD_BYTES
from .int8_matmul import TOKENS
from .int8_rows import BLOCK, quantise
from .nf4_loops import LOOP, f32
from .vectors import (
    Floats,
    Ints,
    Shorts,
    constant,
    external,
    float32,
    int8,
    int32,
    load,
    need_contiguous,
    spread,
    vector,
    zeroed,
)

SUMS = Floats.count  # kept for a record: those of its two groups, and zeros
_RECORDS = BLOCK // RECORD  # that are rounded alike
_GROUP_BYTES = 2**14  # of rows that stay in the first cache
_LOOSE = ("contract", "reassoc")

_Codes = ir.VectorType(int8, Shorts.count)
_Halves, _Four = ir.VectorType(ir.HalfType(), 4), ir.VectorType(float32, 4)


@njit(**LOOP)
def quantise_token(x, t, codes, units, sums):
    """Row t of x float32 [T, columns], zeros where x has no such row, filled up with zeros to whole records.

    ``codes`` int16 [tokens, 64 * records] and ``units`` float32 [tokens, blocks] as ``int8_rows.quantised`` has them;
    ``sums`` float32 [tokens, 8 * records] of each group's codes.
    """
    whole = np.zeros(codes.shape[1], f32)
    if t < x.shape[0]:
        for j in range(x.shape[1]):
            whole[j] = x[t, j]
    quantise(whole, codes[t], units[t])
    for place in range(sums.shape[1]):
        sums[t, place] = 0
    for group in range(codes.shape[1] // GROUP):
        total = np.int32(0)
        for j in range(group * GROUP, (group + 1) * GROUP):
            total += np.int32(codes[t, j])
        sums[t, group // 2 * SUMS + group % 2] = f32(total)


@intrinsic
def _compiled_tile(_context, records, i, codes, units, sums, t, out):
    """Row i times four tokens from ``t`` on."""
    need_contiguous(records, codes, units, sums, out)
    signature = types.void(records, i, codes, units, sums, t, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [context.make_array(signature.args[k])(context, builder, values[k]) for k in (0, 2, 3, 4, 6)]
        records, codes, units, sums, out = arrays
        length, width = (builder.extract_value(each.shape, 1) for each in (records, out))
        columns, blocks, lanes = (builder.extract_value(each.shape, 1) for each in (codes, units, sums))
        tokens = [builder.add(values[5], constant(k)) for k in range(TOKENS)]
        start = builder.gep(records.data, [builder.mul(values[1], builder.mul(length, constant(RECORD_BYTES)))])
        xs = [builder.gep(codes.data, [builder.mul(token, columns)]) for token in tokens]
        worth = [builder.gep(units.data, [builder.mul(token, blocks)]) for token in tokens]
        added = [builder.gep(sums.data, [builder.mul(token, lanes)]) for token in tokens]
        totals = [zeroed(builder, Floats) for _ in tokens]
        with cgutils.for_range(builder, blocks) as block:
            begin = builder.mul(block.index, constant(_RECORDS))
            beyond = builder.add(begin, constant(_RECORDS))
            end = builder.select(builder.icmp_unsigned("<", beyond, length), beyond, length)
            parts = [zeroed(builder, Floats) for _ in tokens]
            with cgutils.for_range_slice(builder, begin, end, constant(1)) as (record, _):
                here = builder.gep(start, [builder.mul(record, constant(RECORD_BYTES))])
                weights, scales, minima = _take_apart(builder, here)
                for x, sums_of, part in zip(xs, added, parts, strict=True):
                    at = builder.gep(x, [builder.mul(record, constant(RECORD))])
                    groups = load(builder, builder.gep(sums_of, [builder.mul(record, constant(SUMS))]), Floats, 0)
                    total = builder.fadd(builder.load(part), builder.fmul(minima, groups, flags=_LOOSE), flags=_LOOSE)
                    for group, scale in enumerate(scales):
                        whole = _products(builder, weights[group], at, group * GROUP)
                        total = builder.fadd(total, builder.fmul(whole, scale, flags=_LOOSE), flags=_LOOSE)
                    builder.store(total, part)
            for total, part, units_of in zip(totals, parts, worth, strict=True):
                unit = spread(builder, builder.load(builder.gep(units_of, [block.index])), Floats)
                product = builder.fmul(builder.load(part), unit, flags=_LOOSE)
                builder.store(builder.fadd(builder.load(total), product, flags=_LOOSE), total)
        add_up = external(builder, "llvm.vector.reduce.fadd.v8f32", float32, float32, Floats)
        for token, total in zip(tokens, totals, strict=True):
            place = builder.add(builder.mul(token, width), values[1])
            product = builder.call(add_up, [ir.Constant(float32, 0), builder.load(total)], fastmath=("reassoc",))
            builder.store(product, builder.gep(out.data, [place]))
        return context.get_dummy_value()

    return signature, generate


def _take_apart(builder: Any, record: Any) -> tuple[list[list[Any]], list[Any], Any]:
    """Of each group of a record two vectors of codes and one of its scale; both minima in the lanes of ``SUMS``."""
    fifteen, four = vector([15] * Shorts.count, int8), vector([4] * Shorts.count, int8)
    weights = []
    for group in range(2):
        both = load(builder, record, _Codes, group * GROUP // 2)
        halves = (builder.and_(both, fifteen), builder.lshr(both, four))
        weights.append([builder.zext(half, Shorts) for half in halves])
    stored = builder.fpext(load(builder, record, _Halves, GROUP), _Four)
    none = ir.Constant(_Four, None)
    scales = [builder.shuffle_vector(stored, none, vector([group] * SUMS, int32)) for group in range(2)]
    minima = builder.shuffle_vector(stored, none, vector([2, 3] + [4] * (SUMS - 2), int32))
    return weights, scales, minima


def _products(builder: Any, weights: list[Any], x: Any, first: int) -> Any:
    """Of a group's codes and the 32 numbers from ``first`` on, eight sums as floats."""
    add_pairs = external(builder, "llvm.x86.avx2.pmadd.wd", Ints, Shorts, Shorts)
    low, high = (
        builder.call(add_pairs, [weight, load(builder, x, Shorts, first + Shorts.count * half)])
        for half, weight in enumerate(weights)
    )
    return builder.sitofp(builder.add(low, high), Floats)


_tile: Any = _compiled_tile


@njit(**LOOP)
def rows_times_tokens(records, codes, units, sums, first, last, out):
    """out[t, i] = row i of ``records`` uint8 [n, records, 40] times token t, for i from first to last.

    ``codes``, ``units`` and ``sums`` are from ``quantise_token``; tokens, of ``out`` float32 [tokens, n] too, are a
    multiple of 4.
    """
    step = max(_GROUP_BYTES // (records.shape[1] * RECORD_BYTES), 1)
    for begin in range(first, last, step):
        for t in range(0, codes.shape[0], TOKENS):
            for i in range(begin, min(begin + step, last)):
                _tile(records, i, codes, units, sums, t, out)
