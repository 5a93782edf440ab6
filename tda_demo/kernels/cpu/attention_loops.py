"""Attention's two products for up to ``HEADS`` query heads that share keys and values, which are then read once.

Written in LLVM's own language, whose vectors exist for every processor: a loop over numbers is not made to keep several
heads' sums in registers. For every line that is read, the same line of what is read next is asked for: by the time a
layer comes round again its cache has been pushed out by the weights of all others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .nf4_loops import LOOP
from .vectors import ask, constant, external, float32, load, need_contiguous, pointer, spread

HEADS = 4
LINE = 16  # numbers

_Line = ir.VectorType(float32, LINE)
_LOOSE = ("contract", "reassoc")


@njit(**LOOP)
def score(keys, begin, end, queries, scale, products, following):
    """products[h, p - begin] = scale times key p times query h, of their first columns, which are whole lines.

    Args:
        keys: float32 [positions, head_dim].
        queries: float32 [heads, head_dim], at most ``HEADS``.
        products: float32 [HEADS, places], written.
        following: float32 [positions, head_dim], asked for.
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
        values: float32 [positions, head_dim].
        weights: float32 [HEADS, places].
        outs: float32 [heads, head_dim], at most ``HEADS``, written.
        following: float32 [positions, head_dim], asked for.
    """
    if len(outs) == 1:
        _mix_1(values, begin, end, weights, outs, following)
    elif len(outs) == 2:
        _mix_2(values, begin, end, weights, outs, following)
    elif len(outs) == 3:
        _mix_3(values, begin, end, weights, outs, following)
    else:
        _mix_4(values, begin, end, weights, outs, following)


class _Sums:
    """A line of sums for each head, in registers."""

    def __init__(self, builder: Any, count: int) -> None:
        self._builder = builder
        self._lines = [cgutils.alloca_once(builder, _Line) for _ in range(count)]

    def clear(self) -> None:
        for line in self._lines:
            self._builder.store(ir.Constant(_Line, [0.0] * LINE), line)

    def add(self, head: int, one: Any, other: Any) -> None:
        product = self._builder.fmul(one, other, flags=_LOOSE)
        line = self._lines[head]
        self._builder.store(self._builder.fadd(self._builder.load(line), product, flags=_LOOSE), line)

    def __iter__(self) -> Any:
        return (self._builder.load(line) for line in self._lines)


class _Table:
    """An array [rows, columns] of float32."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any) -> None:
        self._builder = builder
        self._start = pointer(context, builder, array_type, array)
        self.columns = builder.extract_value(context.make_array(array_type)(context, builder, array).shape, 1)

    def at(self, row: Any, column: Any) -> Any:
        return self._builder.gep(self._start, [self._builder.add(self._builder.mul(row, self.columns), column)])


def _scoring(count: int) -> Any:
    @intrinsic
    def score_some(_context, keys, begin, end, queries, scale, products, following):
        need_contiguous(keys, queries, products, following)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            keys, queries, products, following = (
                _Table(context, builder, signature.args[k], values[k]) for k in (0, 3, 5, 6)
            )
            sums, whole = _Sums(builder, count), builder.and_(keys.columns, constant(-LINE))
            add_up = external(builder, "llvm.vector.reduce.fadd.v16f32", float32, float32, _Line)
            with cgutils.for_range_slice(builder, values[1], values[2], constant(1)) as (position, _):
                sums.clear()
                with cgutils.for_range_slice(builder, constant(0), whole, constant(LINE)) as (column, _):
                    ask(builder, following.at(position, column), constant(0))
                    key = load(builder, keys.at(position, column), _Line, 0)
                    for head in range(count):
                        sums.add(head, key, load(builder, queries.at(constant(head), column), _Line, 0))
                place = builder.sub(position, values[1])
                for head, line in enumerate(sums):
                    total = builder.call(add_up, [ir.Constant(float32, 0.0), line], fastmath=("reassoc",))
                    scaled = builder.fmul(total, values[4], flags=_LOOSE)
                    builder.store(scaled, products.at(constant(head), place))
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
            sums, whole = _Sums(builder, count), builder.and_(values.columns, constant(-LINE))
            with cgutils.for_range_slice(builder, constant(0), whole, constant(LINE)) as (column, _):
                sums.clear()
                with cgutils.for_range_slice(builder, arguments[1], arguments[2], constant(1)) as (position, _):
                    ask(builder, following.at(position, column), constant(0))
                    value = load(builder, values.at(position, column), _Line, 0)
                    place = builder.sub(position, arguments[1])
                    for head in range(count):
                        weight = builder.load(weights.at(constant(head), place))
                        sums.add(head, spread(builder, weight, _Line), value)
                for head, line in enumerate(sums):
                    target = builder.bitcast(outs.at(constant(head), column), _Line.as_pointer())
                    builder.store(line, target, align=4)
            return context.get_dummy_value()

        return signature, generate

    return mix_some


_SIZES = range(1, HEADS + 1)
_score_1, _score_2, _score_3, _score_4 = (_scoring(count) for count in _SIZES)
_mix_1, _mix_2, _mix_3, _mix_4 = (_mixing(count) for count in _SIZES)
