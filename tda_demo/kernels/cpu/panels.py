"""Panels of a matrix: 16 outputs by the columns that are rounded alike, as shorts, times several tokens at once.

A processor multiplies 16 pairs of shorts at once and adds neighbours, as many products again as it makes of floats. So
a panel has pairs of columns side by side, a short of each, for 8 outputs a vector: a token's own pair, spread over a
vector, meets the weights of 8 outputs, whose sums stay in their lanes and are never added up across. Two vectors of
weights, a pair and eight sums, of four tokens, stay in registers, with three of weights one sum would not.

Laid out once, a panel stays in the processor's first cache while all tokens pass.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..q4_sizes import GROUP, RECORD, RECORD_BYTES
from .int8_rows import BLOCK
from .nf4_loops import LOOP
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
    pointer,
    spread,
    vector,
    zeroed,
)

TOKENS = 4  # at once
_WIDE = 2  # vectors of outputs
_LANES = Floats.count
OUTPUTS = _WIDE * _LANES
PANEL = BLOCK * OUTPUTS  # shorts
GROUPS = BLOCK // GROUP  # of a panel at most, each with scales of its own
_STEP = Shorts.count
_LOOSE = ("contract", "reassoc")

_Codes, _Fours = ir.VectorType(int8, 16), ir.VectorType(float32, 4)
_Halves = ir.VectorType(ir.HalfType(), 4)


@intrinsic
def _laying_rows(_context, matrix, i, begin, end, panel):
    """16 rows of ``matrix`` int8 [n, columns] from row ``i`` on, columns ``begin`` to ``end``, a multiple of 16.

    Past the last row, the last is laid out again.
    """
    need_contiguous(matrix, panel)
    signature = types.void(matrix, i, begin, end, panel)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        matrix = context.make_array(signature.args[0])(context, builder, values[0])
        panel = pointer(context, builder, signature.args[4], values[4])
        columns = builder.extract_value(matrix.shape, 1)
        starts = [builder.gep(matrix.data, [builder.mul(row, columns)]) for row in _rows(builder, matrix, values[1])]
        with cgutils.for_range_slice(builder, values[2], values[3], constant(_STEP)) as (at, _):
            pair = builder.udiv(builder.sub(at, values[2]), constant(2))
            for wide in range(_WIDE):
                own = starts[wide * _LANES : (wide + 1) * _LANES]
                shorts = [builder.sext(load(builder, builder.gep(start, [at]), _Codes, 0), Shorts) for start in own]
                _store_pairs(builder, panel, pair, wide, shorts)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _laying_neurons(_context, matrix, n, j, panel, pair):
    """Neurons n and n + 1 of ``matrix`` int8 [neurons, outputs], 16 outputs from j on, as the panel's pair ``pair``."""
    need_contiguous(matrix, panel)
    signature = types.void(matrix, n, j, panel, pair)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        matrix = context.make_array(signature.args[0])(context, builder, values[0])
        panel = pointer(context, builder, signature.args[3], values[3])
        width = builder.extract_value(matrix.shape, 1)
        first = builder.gep(matrix.data, [builder.add(builder.mul(values[1], width), values[2])])
        one, other = (load(builder, each, _Codes, 0) for each in (first, builder.gep(first, [width])))
        for wide in range(_WIDE):
            turns = [wide * _LANES + k // 2 + _Codes.count * (k % 2) for k in range(_STEP)]
            both = builder.shuffle_vector(one, other, vector(turns, int32))
            _store(builder, panel, values[4], wide, builder.sext(both, Shorts))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _laying_records(_context, records, i, record, place, panel, scales, minima):
    """Record number ``record`` of 16 rows of ``records`` uint32 [n, 10 records] from row ``i`` on.

    It is the panel's ``place``-th; ``scales`` and ``minima`` are float32 [groups, 16].
    """
    need_contiguous(records, panel, scales, minima)
    signature = types.void(records, i, record, place, panel, scales, minima)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        records = context.make_array(signature.args[0])(context, builder, values[0])
        panel, *factors = (pointer(context, builder, signature.args[k], values[k]) for k in (4, 5, 6))
        length = builder.mul(builder.extract_value(records.shape, 1), constant(records.data.type.pointee.width // 8))
        data = builder.bitcast(records.data, int8.as_pointer())
        fifteen, four = vector([15] * _Codes.count, int8), vector([4] * _Codes.count, int8)
        starts = []
        for row in _rows(builder, records, values[1]):
            begin = builder.mul(values[2], constant(RECORD_BYTES))
            starts.append(builder.gep(data, [builder.add(builder.mul(row, length), begin)]))
        for lane, start in enumerate(starts):
            stored = builder.fpext(load(builder, start, _Halves, RECORD // 2), _Fours)
            for k in range(4):
                group = builder.add(builder.mul(values[3], constant(2)), constant(k % 2))
                at = builder.add(builder.mul(group, constant(OUTPUTS)), constant(lane))
                number = builder.extract_element(stored, ir.Constant(int32, k))
                builder.store(number, builder.gep(factors[k // 2], [at]))
        for group in range(RECORD // GROUP):
            for wide in range(_WIDE):
                own = starts[wide * _LANES : (wide + 1) * _LANES]
                both = [load(builder, start, _Codes, group * GROUP // 2) for start in own]
                low = [builder.zext(builder.and_(each, fifteen), Shorts) for each in both]
                high = [builder.zext(builder.lshr(each, four), Shorts) for each in both]
                for half, shorts in enumerate((low, high)):
                    pair = builder.mul(values[3], constant(RECORD // 2))
                    pair = builder.add(pair, constant((2 * group + half) * _STEP // 2))
                    _store_pairs(builder, panel, pair, wide, shorts)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _multiplying(_context, panel, groups, pairs, scales, minima, codes, begin, units, block, sums, t, out, j):
    """out[t, j] += unit times the sum over groups of scale times products, plus minimum times the group's sum.

    Of four tokens from ``t`` on and 16 outputs from ``j`` on. A group is ``pairs`` pairs of the panel; ``scales`` and
    ``minima`` are float32 [groups, 16]. The tokens' ``codes`` int16 [tokens, columns] are read from column ``begin``
    on, their ``units`` float32 [tokens, blocks] at ``block``, ``sums`` float32 [tokens, groups of the matrix]. Where
    there are no minima these and ``sums`` are None.
    """
    with_minima = not isinstance(minima, types.NoneType)
    need_contiguous(panel, scales, codes, units, out, *([minima, sums] if with_minima else []))
    signature = types.void(panel, groups, pairs, scales, minima, codes, begin, units, block, sums, t, out, j)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        panel, scales = (pointer(context, builder, signature.args[k], values[k]) for k in (0, 3))
        arrays = [context.make_array(signature.args[k])(context, builder, values[k]) for k in (5, 7, 11)]
        codes, units, out = arrays
        columns, blocks, width = (builder.extract_value(each.shape, 1) for each in arrays)
        tokens = [builder.add(values[10], constant(k)) for k in range(TOKENS)]
        rows = [builder.gep(codes.data, [builder.add(builder.mul(token, columns), values[6])]) for token in tokens]
        totals = [[zeroed(builder, Floats) for _ in range(_WIDE)] for _ in tokens]
        with cgutils.for_range(builder, values[1]) as group:
            whole = [[zeroed(builder, Ints) for _ in range(_WIDE)] for _ in tokens]
            first = builder.mul(group.index, values[2])
            with cgutils.for_range_slice(builder, first, builder.add(first, values[2]), constant(1)) as (pair, _):
                here = builder.gep(panel, [builder.mul(pair, constant(_STEP * _WIDE))])
                weights = [load(builder, here, Shorts, _STEP * k) for k in range(_WIDE)]
                at = builder.mul(pair, constant(2))
                for row, own in zip(rows, whole, strict=True):
                    two = builder.load(builder.bitcast(builder.gep(row, [at]), int32.as_pointer()), align=2)
                    both = builder.bitcast(spread(builder, two, Ints), Shorts)
                    for weight, each in zip(weights, own, strict=True):
                        _add_products(builder, each, weight, both)
            here = builder.gep(scales, [builder.mul(group.index, constant(OUTPUTS))])
            factors = [load(builder, here, Floats, _LANES * k) for k in range(_WIDE)]
            for own, total in zip(whole, totals, strict=True):
                for factor, each, number in zip(factors, own, total, strict=True):
                    _add_floats(builder, number, builder.sitofp(builder.load(each), Floats), factor)
            if with_minima:
                minima = pointer(context, builder, signature.args[4], values[4])
                here = builder.gep(minima, [builder.mul(group.index, constant(OUTPUTS))])
                least = [load(builder, here, Floats, _LANES * k) for k in range(_WIDE)]
                sums = context.make_array(signature.args[9])(context, builder, values[9])
                lanes = builder.extract_value(sums.shape, 1)
                place = builder.add(builder.udiv(values[6], constant(GROUP)), group.index)
                for token, total in zip(tokens, totals, strict=True):
                    added = builder.load(builder.gep(sums.data, [builder.add(builder.mul(token, lanes), place)]))
                    one = spread(builder, added, Floats)
                    for minimum, number in zip(least, total, strict=True):
                        _add_floats(builder, number, one, minimum)
        for token, total in zip(tokens, totals, strict=True):
            unit = builder.load(builder.gep(units.data, [builder.add(builder.mul(token, blocks), values[8])]))
            one = spread(builder, unit, Floats)
            start = builder.gep(out.data, [builder.add(builder.mul(token, width), values[12])])
            for k, each in enumerate(total):
                place = builder.bitcast(builder.gep(start, [constant(_LANES * k)]), Floats.as_pointer())
                product = builder.fmul(builder.load(each), one, flags=_LOOSE)
                builder.store(builder.fadd(builder.load(place, align=4), product, flags=_LOOSE), place, align=4)
        return context.get_dummy_value()

    return signature, generate


def _rows(builder: Any, matrix: Any, first: Any) -> list[Any]:
    """The numbers of 16 rows from ``first`` on, none beyond the last."""
    last = builder.sub(builder.extract_value(matrix.shape, 0), constant(1))
    numbers = [builder.add(first, constant(k)) for k in range(OUTPUTS)]
    return [builder.select(builder.icmp_signed("<", number, last), number, last) for number in numbers]


def _store_pairs(builder: Any, panel: Any, pair: Any, wide: int, rows: list[Any]) -> None:
    """Eight rows of 16 shorts, as eight vectors of a pair of every row, from the panel's ``pair`` on."""
    whole = [builder.bitcast(row, Ints) for row in rows]
    for step in (1, 2, 4):  # neighbours, then those two and four apart, exchange halves
        whole = _exchange(builder, whole, step)
    for k, both in enumerate(whole):
        _store(builder, panel, builder.add(pair, constant(k)), wide, builder.bitcast(both, Shorts))


def _exchange(builder: Any, whole: list[Any], step: int) -> list[Any]:
    """One of the three steps that turn eight vectors of eight numbers over."""
    low = [k + (0 if not k & step else _LANES - step) for k in range(_LANES)]
    high = [k + (step if not k & step else _LANES) for k in range(_LANES)]
    turned = list(whole)
    for k in (k for k in range(_LANES) if not k & step):
        one, other = whole[k], whole[k + step]
        turned[k] = builder.shuffle_vector(one, other, vector(low, int32))
        turned[k + step] = builder.shuffle_vector(one, other, vector(high, int32))
    return turned


def _store(builder: Any, panel: Any, pair: Any, wide: int, shorts: Any) -> None:
    at = builder.add(builder.mul(pair, constant(_STEP * _WIDE)), constant(_STEP * wide))
    builder.store(shorts, builder.bitcast(builder.gep(panel, [at]), Shorts.as_pointer()), align=2)


def _add_products(builder: Any, variable: Any, one: Any, other: Any) -> None:
    add_pairs = external(builder, "llvm.x86.avx2.pmadd.wd", Ints, Shorts, Shorts)
    builder.store(builder.add(builder.load(variable), builder.call(add_pairs, [one, other])), variable)


def _add_floats(builder: Any, variable: Any, one: Any, other: Any) -> None:
    product = builder.fmul(one, other, flags=_LOOSE)
    builder.store(builder.fadd(builder.load(variable), product, flags=_LOOSE), variable)


@njit(**LOOP)
def clear_columns(out, first, last):
    """Zeros in columns first to last of ``out``, which ``multiply`` adds to."""
    for t in range(out.shape[0]):
        part = out[t, first:last]
        for j in range(part.shape[0]):
            part[j] = 0


lay_rows: Any = _laying_rows
lay_neurons: Any = _laying_neurons
lay_records: Any = _laying_records
multiply: Any = _multiplying
