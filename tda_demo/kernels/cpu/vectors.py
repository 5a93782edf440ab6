"""LLVM vectors of an AVX2 processor, for the loops that no compiler finds."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

int8, int16, int32, int64, float32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
Bytes, Shorts, Ints = ir.VectorType(int8, 32), ir.VectorType(int16, 16), ir.VectorType(int32, 8)
Floats = ir.VectorType(float32, 8)
LINE = 64  # bytes the processor fetches at once


@intrinsic
def _nearest(_context, number):
    """The nearest whole number, float32, as ``np.rint`` has it, whose own loops are not made vectors of."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.call(external(builder, "llvm.rint.f32", float32, float32), values)

    return types.float32(types.float32), generate


nearest: Any = _nearest


def need_contiguous(*arrays: Any) -> None:
    if any(array.layout != "C" for array in arrays):
        raise TypingError("rows must lie one after the other")


def pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def load(builder: Any, pointer: Any, kind: Any, offset: int) -> Any:
    """A vector from an address of any alignment, ``offset`` elements of the pointer's type on."""
    moved = builder.gep(pointer, [constant(offset)])
    return builder.load(builder.bitcast(moved, kind.as_pointer()), align=1)


def constant(value: int) -> Any:
    return ir.Constant(int64, value)


def vector(values: list[Any], kind: Any) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), [ir.Constant(kind, int(value)) for value in values])


def spread(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of equal numbers."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(int32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), vector([0] * kind.count, int32))


def nibbles(builder: Any, both: Any) -> tuple[Any, Any]:
    """The low and the high halves of 32 bytes."""
    fifteen, four = vector([15] * 32, int8), vector([4] * 16, int16)
    shifted = builder.bitcast(builder.lshr(builder.bitcast(both, Shorts), four), Bytes)
    return builder.and_(both, fifteen), builder.and_(shifted, fifteen)


def larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def zeroed(builder: Any, kind: Any) -> Any:
    """A variable of zeros."""
    variable = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, None), variable)
    return variable


def external(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def _asking(_context, array, row, lines):
    """Asks for the first ``lines`` of 64 bytes of ``array``'s row number ``row``."""
    need_contiguous(array)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = context.make_array(signature.args[0])(context, builder, values[0])
        stride = builder.extract_value(whole.strides, 0)
        start = builder.gep(builder.bitcast(whole.data, int8.as_pointer()), [builder.mul(values[1], stride)])
        with cgutils.for_range(builder, values[2]) as loop:
            ask(builder, start, builder.mul(loop.index, constant(LINE)))
        return context.get_dummy_value()

    return types.void(array, row, lines), generate


@intrinsic
def _asking_bytes(_context, array, first, lines):
    """Asks for the ``lines`` lines of ``array`` from its byte ``first`` on, which may lie beyond its end."""
    need_contiguous(array)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = builder.bitcast(pointer(context, builder, signature.args[0], values[0]), int8.as_pointer())
        with cgutils.for_range(builder, values[2]) as loop:
            ask(builder, start, builder.add(values[1], builder.mul(loop.index, constant(LINE))))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


ask_for: Any = _asking
ask_for_bytes: Any = _asking_bytes


def ask(builder: Any, row: Any, at: Any) -> None:
    """Asks for the line that holds element ``at``, into the second cache.

    A processor waits for more lines at once there than into the first: of int8 rows of 768 and of 3,072 bytes, 40 % of
    them left out, 22 and 30 GB/s are read in place of 16 and 22 (AMD EPYC, Zen 4, 2 threads).
    """
    fetch = external(builder, "llvm.prefetch.p0", ir.VoidType(), int8.as_pointer(), int32, int32, int32)
    read, second, data = (ir.Constant(int32, number) for number in (0, 2, 1))
    builder.call(fetch, [builder.bitcast(builder.gep(row, [at]), int8.as_pointer()), read, second, data])
