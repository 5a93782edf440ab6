"""Neurons that lie anywhere, one after the other: the rows of the next one are asked for while one is computed.

A row of a small model is read in the time that memory takes to answer once, and the processor cannot guess where the
next one lies: it fetches what follows the row, for nothing. So a neuron is a record, its rows of gate and up and its
column of down in one piece: measured on rows of 1,152 bytes, 40 % of them, records come at 20 GB/s, rows of three
matrices at 14, and all of them in order at 34. Loops over rows that lie side by side are better off with ``rows``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .elementwise import activate, activate_all
from .rows import LOOP, f32, matvec, weighted_rows
from .vectors import LINE, Floats, ask, constant, external, float32, int8, int16, int32, need_contiguous, spread

_AHEAD = 2  # neurons
_LANES = Floats.count
_LOOSE = ("contract", "reassoc")


def compute(neurons, x, chosen, first, last, activation, up, activations, out):
    """out = what the neurons ``chosen[first:last]`` give, down's output scales aside.

    ``activations[first:last]`` float32 are written, and ``up`` of the same places may be.
    """
    raise NotImplementedError("only inside compiled code")


@overload(compute, jit_options=LOOP)
def _compute(neurons, x, chosen, first, last, activation, up, activations, out):
    return _by_matrix if neurons.types[0].dtype in (types.uint8, types.uint32) else _by_record


def _by_matrix(neurons, x, chosen, first, last, activation, up, activations, out):
    """nf4 and q4, whose rows are short and have to be taken apart."""
    matvec(neurons.gate, neurons.gate_scale, x, chosen, first, last, activations)
    matvec(neurons.up, neurons.up_scale, x, chosen, first, last, up)
    for i in range(first, last):
        activations[i] += neurons.gate_bias[chosen[i]]
    activate_all(activations, first, last, activation)
    for i in range(first, last):
        activations[i] *= up[i] + neurons.up_bias[chosen[i]]
    weighted_rows(neurons.down, neurons.down_scale, activations, chosen, first, last, out)


def _by_record(neurons, x, chosen, first, last, activation, up, activations, out):
    records = neurons.gate
    for j in range(out.shape[0]):
        out[j] = f32(0)
    for i in range(first, last):
        neuron, later = chosen[i], chosen[min(i + _AHEAD, last - 1)]
        gate = dot(records, 3 * neuron, 3 * later, x)
        linear = dot(records, 3 * neuron + 1, 3 * later + 1, x)
        gate = gate * neurons.gate_scale[neuron] + neurons.gate_bias[neuron]
        linear = linear * neurons.up_scale[neuron] + neurons.up_bias[neuron]
        activations[i] = activate(gate, activation) * linear
        add_row(records, 3 * neuron + 2, 3 * later + 2, activations[i], out)


def _row(context: Any, builder: Any, array_type: Any, value: Any, row: Any) -> tuple[Any, Any]:
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
        start, columns = _row(context, builder, signature.args[0], values[0], values[1])
        next_start, _ = _row(context, builder, signature.args[0], values[0], values[2])
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
        start, columns = _row(context, builder, signature.args[0], values[0], values[1])
        next_start, _ = _row(context, builder, signature.args[0], values[0], values[2])
        out = context.make_array(signature.args[4])(context, builder, values[4]).data
        code, weights = signature.args[0].dtype, spread(builder, values[3], Floats)
        line = constant(LINE * 8 // code.bitwidth)
        whole = builder.mul(builder.udiv(columns, line), line)

        def add(at: Any, lanes: int, weight: Any, kind: Any) -> None:
            place = builder.bitcast(builder.gep(out, [at]), kind.as_pointer())
            product = builder.fmul(_widened(builder, start, at, code, lanes), weight, flags=_LOOSE)
            builder.store(builder.fadd(builder.load(place, align=4), product, flags=_LOOSE), place, align=4)

        with cgutils.for_range_slice(builder, constant(0), whole, line) as (at, _):
            ask(builder, next_start, at)
            for part in range(0, line.constant, _LANES):
                add(builder.add(at, constant(part)), _LANES, weights, Floats)
        with cgutils.for_range_slice(builder, whole, columns, constant(1)) as (at, _):
            add(at, 1, values[3], float32)
        return context.get_dummy_value()

    return signature, generate


dot: Any = _dot
add_row: Any = _add_row
