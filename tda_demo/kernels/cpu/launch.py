"""A compiled function run by several threads at once: its arguments lie at one address, and it is called by address.

Numba compiles what a loop over threads calls again for every level that leads to it, and takes the arguments of a call
from Python apart each time: a decode step has some sixty arrays. Here the loop is compiled once for all functions, and
arguments are taken apart once for all calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, threading_layer, typeof, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ...support.errors import UserError
from .apart import move_apart, new_places, note_processor
from .barrier import clear, new_counters, roll_call, was_complete
from .nf4_loops import LOOP
from .vectors import constant

_TRIES = 2  # more, of a call whose threads did not run at once


class ParallelCall:
    """Runs ``function(t, threads, counters, address, kind)`` for all t below ``threads``, as many threads at once.

    The function is an njit one; ``argument(address, kind, name)`` gives it a field of ``arguments``, a named tuple of
    arrays, numbers and such tuples. Arrays are the caller's own: what one writes, the other sees. ``counters`` are for
    ``barrier.barrier``.

    Fields are stored, and asked for, one by one: a value that held all of them would be written out in full wherever
    one is used, and compiling would take a third longer.
    """

    def __init__(self, function: Any, arguments: tuple[Any, ...], threads: int) -> None:
        self.arguments = arguments  # whose arrays must live as long as their addresses are used
        self.threads = threads
        self._counters, self._places = new_counters(), new_places(threads)
        kind: Any = typeof(arguments)
        context: Any = cpu_target.target_context
        self._at = np.zeros(context.get_abi_sizeof(context.get_data_type(kind)), np.uint8)
        for place, field in enumerate(arguments):
            if field is not None:
                _keep_at(field, self._at.ctypes.data + _offset(context, kind, place))
        signature = (types.int64, types.int64, typeof(self._counters), types.int64, types.TypeRef(kind))
        function.compile(signature)
        compiled = function.overloads[signature]
        self._address: int = self._at.ctypes.data  # asked for once: it takes longer than all else between two calls
        self._function: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)

    def __call__(self) -> bool:
        """Whether the threads ran at once; where they do not, nothing is done. The caller has the cores (``turn``)."""
        return _launch(self._function, self._address, self.threads, self._counters, self._places)


def run_at_once(call: ParallelCall) -> None:
    """Runs ``call``, again where a very busy machine did not run its threads at once.

    Raises:
        UserError: its threads did not run at once.
    """
    if not (call() or any(call() for _ in range(_TRIES))):
        raise UserError(
            f"numba's threading layer '{threading_layer()}' does not run {call.threads} threads at once here: "
            "unset NUMBA_THREADING_LAYER, or set OMP_NUM_THREADS=1."
        )


def _offset(context: Any, kind: Any, place: int) -> int:
    """Bytes from the beginning of such a tuple to its field number ``place``."""
    return context.get_data_type(kind).get_element_offset(context.target_data, place)


@intrinsic
def _storing(_context, field, address):
    """Writes a field where ``argument`` reads it, arrays without an owner: nobody counts who uses them."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        place = builder.inttoptr(values[1], context.get_data_type(kind).as_pointer())
        model = context.data_model_manager[kind]
        builder.store(model.as_data(builder, _borrowed(context, builder, kind, values[0])), place)
        return context.get_dummy_value()

    return types.void(field, types.int64), generate


def _borrowed(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        array.parent = ir.Constant(array.parent.type, None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts: Any = kind
        for place, part in enumerate(parts):
            inner = _borrowed(context, builder, part, builder.extract_value(value, place))
            value = builder.insert_value(value, inner, place)
    return value


@intrinsic(prefer_literal=True)
def _argument(_context, address, kind, name):
    """The field ``name``, a literal, of the arguments that ``ParallelCall`` was given, inside its function."""
    whole = kind.instance_type
    place = whole.fields.index(name.literal_value)
    field = whole.types[place]

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        address = builder.add(values[0], constant(_offset(context, whole, place)))
        pointer = builder.inttoptr(address, context.get_data_type(field).as_pointer())
        return context.data_model_manager[field].load_from_data_pointer(builder, pointer)

    return field(types.int64, kind, name), generate


@intrinsic
def _calling(_context, function, t, threads, counters, address):
    """Calls the function at the address ``function``. It cannot raise."""
    signature = types.void(types.int64, types.int64, types.int64, counters, types.int64)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = [*signature.args[1:], types.TypeRef(types.int64)]  # whichever type, there is nothing to pass
        convention = context.call_conv
        prototype = convention.get_function_type(types.none, kinds)
        pointer = builder.inttoptr(values[0], prototype.as_pointer())
        convention.call_function(builder, pointer, types.none, kinds, [*values[1:], context.get_dummy_value()])
        return context.get_dummy_value()

    return signature, generate


_store: Any = _storing
_call: Any = _calling
argument: Any = _argument


@njit(**LOOP)
def _keep_at(field, address):
    _store(field, address)


@njit(parallel=True, **LOOP)
def _launch(function, address, threads, counters, places):
    clear(counters)
    for t in prange(threads):
        note_processor(places, t)
        if roll_call(counters, threads):
            move_apart(places, t)
            _call(function, np.int64(t), threads, counters, address)
    return was_complete(counters, threads)
