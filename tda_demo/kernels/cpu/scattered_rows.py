"""Rows of codes that lie apart: those that come next are asked for while some are computed.

The processor cannot guess where the next row lies, and a row of a small model is over before it has noticed that it is
read in order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vectors import LINE, Floats, ask, constant, external, float32, int8, int16, int32, need_contiguous, spread

FOUR = 4  # rows that ``add_four`` and ``add_apart`` take at once

_LANES = Floats.count
_LOOSE = ("contract", "reassoc")


def row_address(context: Any, builder: Any, array_type: Any, value: Any, row: Any) -> tuple[Any, Any]:
    """The address of a row's first code, and how many it has; of records, three rows each, rows are counted through."""
    array = context.make_array(array_type)(context, builder, value)
    columns = builder.extract_value(array.shape, array_type.ndim - 1)
    return builder.gep(array.data, [builder.mul(row, columns)]), columns


def _widened(builder: Any, row: Any, at: Any, code: Any, lanes: int) -> Any:
    """Codes from ``at`` on as float32: a vector, or a number where ``lanes`` is 1."""

    def kind(element: Any) -> Any:
        return element if lanes == 1 else ir.VectorType(element, lanes)

    def read(element: Any) -> Any:
        place = builder.bitcast(builder.gep(row, [at]), kind(element).as_pointer())
        return builder.load(place, align=1)

    if code == types.float32:
        return read(float32)
    if code == types.uint16:
        sixteen = ir.Constant(int32, 16) if lanes == 1 else ir.Constant(kind(int32), [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(read(int16), kind(int32)), sixteen), kind(float32))
    return builder.sitofp(builder.sext(read(int8), kind(int32)), kind(float32))


@intrinsic
def _dot(_context, codes, row, later, x):
    """A row of codes times x float32, scales aside; asks for the row ``later``."""
    need_contiguous(codes, x)
    signature = types.float32(codes, row, later, x)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start, columns = row_address(context, builder, signature.args[0], values[0], values[1])
        next_start, _ = row_address(context, builder, signature.args[0], values[0], values[2])
        x = context.make_array(signature.args[3])(context, builder, values[3]).data
        code, step = signature.args[0].dtype, 4 * _LANES
        sums = [cgutils.alloca_once(builder, Floats) for _ in range(4)]
        for each in sums:
            builder.store(ir.Constant(Floats, [0.0] * _LANES), each)
        whole = builder.mul(builder.udiv(columns, constant(step)), constant(step))
        with cgutils.for_range_slice(builder, constant(0), whole, constant(step)) as (at, _):
            for line in range(0, step, LINE * 8 // code.bitwidth):
                ask(builder, next_start, builder.add(at, constant(line)))
            for part, each in enumerate(sums):
                here = builder.add(at, constant(part * _LANES))
                other = builder.load(builder.bitcast(builder.gep(x, [here]), Floats.as_pointer()), align=4)
                product = builder.fmul(_widened(builder, start, here, code, _LANES), other, flags=_LOOSE)
                builder.store(builder.fadd(builder.load(each), product, flags=_LOOSE), each)
        first, second, third, fourth = (builder.load(each) for each in sums)
        total = builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth))
        add_up = external(builder, "llvm.vector.reduce.fadd.v8f32", float32, float32, Floats)
        result = cgutils.alloca_once(builder, float32)
        builder.store(builder.call(add_up, [ir.Constant(float32, 0.0), total], fastmath=("reassoc",)), result)
        with cgutils.for_range_slice(builder, whole, columns, constant(1)) as (at, _):
            product = builder.fmul(_widened(builder, start, at, code, 1), builder.load(builder.gep(x, [at])))
            builder.store(builder.fadd(builder.load(result), product), result)
        return builder.load(result)

    return signature, generate


@intrinsic
def _add_row(_context, codes, row, later, weight, out):
    """out += weight times a row of codes; asks for the row ``later``."""
    need_contiguous(codes, out)
    signature = types.void(codes, row, later, weight, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start, _ = row_address(context, builder, signature.args[0], values[0], values[1])
        following, _ = row_address(context, builder, signature.args[0], values[0], values[2])
        out = context.make_array(signature.args[4])(context, builder, values[4])
        _add(builder, signature.args[0].dtype, [start], [following], [values[3]], out)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_four(_context, codes, rows, weights, i, last, begin, out):
    """out += the sum of weights[i + k] times row rows[i + k] from column ``begin`` on, k from 0 to 3.

    Asks for the four rows after the next four, of those before place ``last``.
    """
    need_contiguous(codes, rows, weights, out)
    signature = types.void(codes, rows, weights, i, last, begin, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        rows, weights = (context.make_array(signature.args[k])(context, builder, values[k]).data for k in (1, 2))
        end = builder.sub(values[4], constant(1))

        def start(place: Any) -> Any:
            row = builder.load(builder.gep(rows, [place]))
            address, _ = row_address(context, builder, signature.args[0], values[0], row)
            return builder.gep(address, [values[5]])

        places = [builder.add(values[3], constant(k)) for k in range(FOUR)]
        asked = [builder.add(place, constant(2 * FOUR)) for place in places]
        later = [builder.select(builder.icmp_signed("<", place, end), place, end) for place in asked]
        numbers = [builder.load(builder.gep(weights, [place])) for place in places]
        starts, following = [start(place) for place in places], [start(place) for place in later]
        out = context.make_array(signature.args[6])(context, builder, values[6])
        _add(builder, signature.args[0].dtype, starts, following, numbers, out)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_apart(_context, codes, i, step, weights, out):
    """out += the sum of weights[n] times row n, n being i and three others, each ``step`` on from the one before.

    Asks for the rows that follow them.
    """
    need_contiguous(codes, weights, out)
    signature = types.void(codes, i, step, weights, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        weights = context.make_array(signature.args[3])(context, builder, values[3]).data

        def start(row: Any) -> Any:
            return row_address(context, builder, signature.args[0], values[0], row)[0]

        places = [builder.add(values[1], builder.mul(values[2], constant(k))) for k in range(FOUR)]
        starts, following = (
            [
                row_address(context, builder, signature.args[0], values[0], builder.add(place, constant(on)))[0]
                for place in places
            ]
            for on in (0, 1)
        )
        numbers = [builder.load(builder.gep(weights, [place])) for place in places]
        out = context.make_array(signature.args[4])(context, builder, values[4])
        _add(builder, signature.args[0].dtype, starts, following, numbers, out)
        return context.get_dummy_value()

    return signature, generate


def _add(builder: Any, code: Any, starts: list[Any], following: list[Any], weights: list[Any], out: Any) -> None:
    """The array ``out`` += the sum of weights times what lies at ``starts``; asks for what lies at ``following``."""
    columns, line = builder.extract_value(out.shape, 0), constant(LINE * 8 // code.bitwidth)
    whole = builder.mul(builder.udiv(columns, line), line)
    vectors = [spread(builder, weight, Floats) for weight in weights]

    def add(at: Any, lanes: int, weights: list[Any], kind: Any) -> None:
        place = builder.bitcast(builder.gep(out.data, [at]), kind.as_pointer())
        total = builder.load(place, align=4)
        for start, weight in zip(starts, weights, strict=True):
            product = builder.fmul(_widened(builder, start, at, code, lanes), weight, flags=_LOOSE)
            total = builder.fadd(total, product, flags=_LOOSE)
        builder.store(total, place, align=4)

    with cgutils.for_range_slice(builder, constant(0), whole, line) as (at, _):
        for row in following:
            ask(builder, row, at)
        for part in range(0, line.constant, _LANES):
            add(builder.add(at, constant(part)), _LANES, vectors, Floats)
    with cgutils.for_range_slice(builder, whole, columns, constant(1)) as (at, _):
        add(at, 1, weights, float32)


dot: Any = _dot
add_row: Any = _add_row
add_four: Any = _add_four
add_apart: Any = _add_apart
