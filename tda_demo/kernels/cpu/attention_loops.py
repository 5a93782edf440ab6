"""Attention's two products for up to ``HEADS`` query heads that share keys and values, which are then read once.

Written in LLVM's own language, whose vectors exist for every processor: a loop over numbers is not made to keep several
heads' sums in registers. For what is read, the same places of what is read next are asked for, those of halves twice:
by the time a layer comes round again its cache has been pushed out by the weights of all others.

Keys and values are float32, or half precision as ``halves`` has it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .nf4_loops import LOOP
from .vectors import (
    Floats,
    ask,
    constant,
    int32,
    load,
    need_contiguous,
    pointer,
    spread,
    vector,
    zeroed,
)

HEADS = 4
LINE = 16  # numbers

_LANES = Floats.count
_Halves = ir.VectorType(ir.HalfType(), _LANES)
_PLACES = {1: 4, 2: 4, 3: 4, 4: 2}  # positions whose sums the registers hold, of so many heads,
_WIDTHS = {1: 32, 2: 32, 3: 32, 4: 16}  # and columns
_LOOSE = ("contract", "reassoc")


@njit(**LOOP)
def score(keys, begin, end, queries, scale, products, following):
    """products[h, p - begin] = scale times key p times query h, of their first columns, which are whole lines.

    Args:
        keys: [positions, head_dim].
        queries: float32 [heads, head_dim], at most ``HEADS``.
        products: float32 [HEADS, places], written, and up to three places beyond.
        following: [positions, head_dim], asked for.
    """
    if len(queries) == 1:
        _score_1(keys, begin, end, queries, scale, products, following)
    elif len(queries) == 2:
        _score_2(keys, begin, end, queries, scale, products, following)
    elif len(queries) == 3:
        _score_3(keys, begin, end, queries, scale, products, following)
    else:
        _score_4(keys, begin, end, queries, scale, products, following)


@njit(**LOOP)
def mix(values, begin, end, weights, outs, following):
    """outs[h] = the sum over p of weights[h, p - begin] times value p, its first columns, which are whole lines.

    Args:
        values: [positions, head_dim].
        weights: float32 [HEADS, places].
        outs: float32 [heads, head_dim], at most ``HEADS``, written.
        following: [positions, head_dim], asked for.
    """
    if len(outs) == 1:
        _mix_1(values, begin, end, weights, outs, following)
    elif len(outs) == 2:
        _mix_2(values, begin, end, weights, outs, following)
    elif len(outs) == 3:
        _mix_3(values, begin, end, weights, outs, following)
    else:
        _mix_4(values, begin, end, weights, outs, following)


class _Table:
    """An array [rows, columns] of float32, or of half precision."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any) -> None:
        self._builder = builder
        self._start = pointer(context, builder, array_type, array)
        self._halves = array_type.dtype == types.uint16
        self.columns = builder.extract_value(context.make_array(array_type)(context, builder, array).shape, 1)

    def at(self, row: Any, column: Any) -> Any:
        return self._builder.gep(self._start, [self._builder.add(self._builder.mul(row, self.columns), column)])

    def eight(self, row: Any, column: Any) -> Any:
        """Eight numbers of a row, as floats."""
        if not self._halves:
            return load(self._builder, self.at(row, column), Floats, 0)
        return self._builder.fpext(load(self._builder, self.at(row, column), _Halves, 0), Floats)


def _scoring(count: int) -> Any:
    @intrinsic
    def score_some(_context, keys, begin, end, queries, scale, products, following):
        need_contiguous(keys, queries, products, following)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            keys, queries, products, following = (
                _Table(context, builder, signature.args[k], values[k]) for k in (0, 3, 5, 6)
            )
            places, whole = _PLACES[count], builder.and_(keys.columns, constant(-LINE))
            final = builder.sub(values[2], constant(1))
            with cgutils.for_range_slice(builder, values[1], values[2], constant(places)) as (position, _):
                rows = [builder.add(position, constant(k)) for k in range(places)]
                # Beyond the end the last one again, whose products nobody reads.
                read = [builder.select(builder.icmp_signed("<", row, final), row, final) for row in rows]
                sums = [[zeroed(builder, Floats) for _ in rows] for _ in range(count)]
                with cgutils.for_range_slice(builder, constant(0), whole, constant(LINE)) as (column, _):
                    for row in rows:
                        ask(builder, following.at(row, column), constant(0))
                    for at in (builder.add(column, constant(part)) for part in range(0, LINE, _LANES)):
                        parts = [queries.eight(constant(head), at) for head in range(count)]
                        for place, row in enumerate(read):
                            key = keys.eight(row, at)
                            for head, query in enumerate(parts):
                                _add_product(builder, sums[head][place], key, query)
                place = builder.sub(position, values[1])
                for head, own in enumerate(sums):
                    totals = _added_up(builder, [builder.load(each) for each in own])
                    scaled = builder.fmul(totals, spread(builder, values[4], totals.type), flags=_LOOSE)
                    target = builder.bitcast(products.at(constant(head), place), scaled.type.as_pointer())
                    builder.store(scaled, target, align=4)
            return context.get_dummy_value()

        return types.void(keys, begin, end, queries, scale, products, following), generate

    return score_some


def _mixing(count: int) -> Any:
    @intrinsic
    def mix_some(_context, values, begin, end, weights, outs, following):
        need_contiguous(values, weights, outs, following)
        signature = types.void(values, begin, end, weights, outs, following)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values, weights, outs, following = (
                _Table(context, builder, signature.args[k], arguments[k]) for k in (0, 3, 4, 5)
            )
            whole, done = builder.and_(values.columns, constant(-LINE)), constant(0)
            for width in sorted({_WIDTHS[count], LINE}, reverse=True):
                here = builder.and_(whole, constant(-width))
                with cgutils.for_range_slice(builder, done, here, constant(width)) as (column, _):
                    columns = [builder.add(column, constant(part)) for part in range(0, width, _LANES)]
                    sums = [[zeroed(builder, Floats) for _ in columns] for _ in range(count)]
                    with cgutils.for_range_slice(builder, arguments[1], arguments[2], constant(1)) as (position, _):
                        for line in range(0, width, LINE):
                            ask(builder, following.at(position, builder.add(column, constant(line))), constant(0))
                        place = builder.sub(position, arguments[1])
                        own = [builder.load(weights.at(constant(head), place)) for head in range(count)]
                        spreads = [spread(builder, weight, Floats) for weight in own]
                        for number, at in enumerate(columns):
                            value = values.eight(position, at)
                            for head, weight in enumerate(spreads):
                                _add_product(builder, sums[head][number], value, weight)
                    for head, totals in enumerate(sums):
                        for at, total in zip(columns, totals, strict=True):
                            target = builder.bitcast(outs.at(constant(head), at), Floats.as_pointer())
                            builder.store(builder.load(total), target, align=4)
                done = here
            return context.get_dummy_value()

        return signature, generate

    return mix_some


def _add_product(builder: Any, variable: Any, one: Any, other: Any) -> None:
    product = builder.fmul(one, other, flags=_LOOSE)
    builder.store(builder.fadd(builder.load(variable), product, flags=_LOOSE), variable)


def _added_up(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of two or four vectors' numbers each."""
    first, second, *others = vectors
    low = _pairs(builder, first, second)
    halves = _pairs(builder, low, _pairs(builder, *others) if others else low)
    parts = [builder.shuffle_vector(halves, halves, vector(list(range(k, k + len(vectors))), int32)) for k in (0, 4)]
    return builder.fadd(*parts, flags=_LOOSE)


def _pairs(builder: Any, one: Any, other: Any) -> Any:
    """Sums of neighbours: in either half, two of one vector, then two of the other."""
    both = [
        builder.shuffle_vector(one, other, vector([0 + k, 2 + k, 8 + k, 10 + k, 4 + k, 6 + k, 12 + k, 14 + k], int32))
        for k in (0, 1)
    ]
    return builder.fadd(*both, flags=_LOOSE)


_SIZES = range(1, HEADS + 1)
_score_1, _score_2, _score_3, _score_4 = (_scoring(count) for count in _SIZES)
_mix_1, _mix_2, _mix_3, _mix_4 = (_mixing(count) for count in _SIZES)
