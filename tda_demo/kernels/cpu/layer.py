"""The products of a layer inside the compiled step, each one thread's share: the feed-forward block's and attention's.

A token-level method has a named tuple of arrays, its *rule*, and in a file of its own (``token``) an overload of
``mlp`` for that type, which decides what to read as it goes; one that leaves out parts of attention's projections
(``token.channels``) has an overload of ``project`` too. A sequence-level one has a rule where the neurons it leaves out
still contribute (``rest``). Without a rule, all neurons at hand are computed; without an overload of ``project``, all
rows are read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .elementwise import gate_all
from .rows import LOOP, matvec, weighted_rows
from .scattered import compute


class Neurons(NamedTuple):
    """Neurons of all layers, one layer's after the other's.

    As records, which ``scattered`` computes, ``gate`` is codes [neurons, 3, d] of all three, ``up`` and ``down`` empty.
    """

    gate: np.ndarray  # codes [neurons, ...] of rows of gate
    up: np.ndarray  # codes [neurons, ...] of rows of up
    down: np.ndarray  # codes [neurons, ...] of columns of down
    gate_scale: np.ndarray  # float32 [neurons, ...], as ``formats.Rows.scales``
    up_scale: np.ndarray  # float32 [neurons, ...]
    down_scale: np.ndarray  # float32 [neurons, blocks], as ``formats.ByNeuron.block_scales``
    gate_bias: np.ndarray  # float32 [neurons]
    up_bias: np.ndarray  # float32 [neurons]


def mlp(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    """What the places first to last give, down's output scales aside, in ``out`` [d]; returns how many it computed.

    They are the share of ``thread``, one of ``threads``. ``x`` float32 [d] is the block's input; ``activations`` and
    ``up`` float32 [places] are written. A token-level rule writes the neurons it computes into ``chosen`` int64
    [places], from ``first`` on, and reads nothing else there.
    """
    raise NotImplementedError("only inside compiled code")


def kernel(rule_type):
    """Makes the decorated function ``mlp`` for rules of the named tuple ``rule_type``."""

    def register(function):
        @overload(mlp, jit_options=LOOP)
        def for_rule(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
            ours = getattr(rule, "instance_class", None) is rule_type
            return function if ours else None

        return function

    return register


@overload(mlp, jit_options=LOOP)
def _without_rule(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    if rule not in (None, types.none):
        return None
    return _side_by_side if chosen in (None, types.none) else _in_place


def _side_by_side(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    matvec(neurons.gate, neurons.gate_scale, x, None, first, last, activations)
    matvec(neurons.up, neurons.up_scale, x, None, first, last, up)
    gate_bias, up_bias = neurons.gate_bias[first:last], neurons.up_bias[first:last]
    gate_all(activations[first:last], gate_bias, up[first:last], up_bias, activation)
    weighted_rows(neurons.down, neurons.down_scale, activations, None, first, last, out)
    return last - first


def _in_place(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    compute(neurons, x, chosen, first, last, activation, up, activations, out)
    return last - first


QKV, OUT = 0, 1  # which matrix

_with_projection: set[type] = set()  # rule types that have an overload of ``project``


def project(rule, layer, which, codes, scale, x, first, last, out):
    """out[i] = row i of the matrix times x float32 [columns], for i from first to last; its bias is added later.

    ``codes`` and ``scale`` are the layer's, as ``formats.Rows`` has them.
    """
    raise NotImplementedError("only inside compiled code")


def projection(rule_type):
    """Makes the decorated function ``project`` for rules of the named tuple ``rule_type``."""
    _with_projection.add(rule_type)

    def register(function):
        @overload(project, jit_options=LOOP)
        def for_rule(rule, layer, which, codes, scale, x, first, last, out):
            ours = isinstance(rule, types.NamedTuple) and rule.instance_class is rule_type
            return function if ours else None

        return function

    return register


@overload(project, jit_options=LOOP)
def _whole(rule, layer, which, codes, scale, x, first, last, out):
    own = isinstance(rule, types.NamedTuple) and rule.instance_class in _with_projection
    return None if own else _all_columns


def _all_columns(rule, layer, which, codes, scale, x, first, last, out):
    matvec(codes, scale, x, None, first, last, out)
