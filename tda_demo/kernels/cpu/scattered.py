"""Neurons that lie anywhere, one after the other: the rows of the next one are asked for while one is computed.

A row of a small model is read in the time that memory takes to answer once, and the processor cannot guess where the
next one lies: it fetches what follows the row, for nothing. So a neuron is a record, its rows of gate and up and its
column of down in one piece: measured on rows of 1,152 bytes, 40 % of them, records come at 20 GB/s, rows of three
matrices at 14, and all of them in order at 34. Loops over rows that lie side by side are better off with ``rows``.
"""

from __future__ import annotations

from numba import types
from numba.extending import overload

from . import int8_rows
from .elementwise import activate, gate_all
from .processor import HAS_SHUFFLE
from .rows import LOOP, f32, matvec, weighted_rows
from .scattered_rows import add_row, dot

_AHEAD = 2  # neurons


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
    places = chosen[first:last]
    gate_bias, up_bias = neurons.gate_bias[places], neurons.up_bias[places]
    gate_all(activations[first:last], gate_bias, up[first:last], up_bias, activation)
    weighted_rows(neurons.down, neurons.down_scale, activations, chosen, first, last, out)


def _by_record(neurons, x, chosen, first, last, activation, up, activations, out):
    records, vector = neurons.gate, _prepared(neurons.gate, x)
    for j in range(out.shape[0]):
        out[j] = f32(0)
    for i in range(first, last):
        neuron, later = chosen[i], chosen[min(i + _AHEAD, last - 1)]
        gate = _times(records, 3 * neuron, 3 * later, vector)
        linear = _times(records, 3 * neuron + 1, 3 * later + 1, vector)
        gate = gate * neurons.gate_scale[neuron] + neurons.gate_bias[neuron]
        linear = linear * neurons.up_scale[neuron] + neurons.up_bias[neuron]
        activations[i] = activate(gate, activation) * linear
        add_row(records, 3 * neuron + 2, 3 * later + 2, activations[i], out)


def _prepared(records, x):
    """``x`` as ``_times`` wants it."""
    raise NotImplementedError("only inside compiled code")


@overload(_prepared, jit_options=LOOP)
def _compiled_prepared(records, x):
    if records.dtype == types.int8 and HAS_SHUFFLE:
        return lambda records, x: int8_rows.quantised(x)
    return lambda records, x: x


def _times(records, row, later, vector):
    """A row of ``records`` times a prepared vector, its scale aside; asks for the row ``later``."""
    raise NotImplementedError("only inside compiled code")


@overload(_times, jit_options=LOOP)
def _compiled_times(records, row, later, vector):
    if isinstance(vector, types.BaseTuple):
        return lambda records, row, later, vector: int8_rows.dot(records, row, later, vector[0], vector[1])
    return lambda records, row, later, vector: dot(records, row, later, vector)
