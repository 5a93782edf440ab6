"""Token-level kernels that compute a part of the block in full and compare it with a threshold: TT and CATS."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..elementwise import activate_all, gate_all
from ..layer import kernel
from ..rows import matvec, weighted_rows


class Truncation(NamedTuple):
    """TT: a neuron's column of down is read where ``|a_j| n_j`` exceeds the layer's limit."""

    norms: np.ndarray  # float32 [neurons], of the columns of down
    limits: np.ndarray  # float32 [layers]


class GateThreshold(NamedTuple):
    """CATS: a neuron's row of up and column of down are read where its activated gate exceeds the layer's limit."""

    limits: np.ndarray  # float32 [layers], of |act(g_j)|


@kernel(Truncation)
def _truncated(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    matvec(neurons.gate, neurons.gate_scale, x, None, first, last, activations)
    matvec(neurons.up, neurons.up_scale, x, None, first, last, up)
    gate_bias, up_bias = neurons.gate_bias[first:last], neurons.up_bias[first:last]
    gate_all(activations[first:last], gate_bias, up[first:last], up_bias, activation)
    limit = rule.limits[layer]
    end = first
    for i in range(first, last):
        a = activations[i]
        if abs(a) * rule.norms[i] > limit:
            chosen[end] = i
            activations[end] = a
            end += 1
    weighted_rows(neurons.down, neurons.down_scale, activations, chosen, first, end, out)
    return end - first


@kernel(GateThreshold)
def _gated(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    matvec(neurons.gate, neurons.gate_scale, x, None, first, last, activations)
    activate_all(activations[first:last], neurons.gate_bias[first:last], activation)
    limit = rule.limits[layer]
    end = first
    for i in range(first, last):
        gate = activations[i]
        if abs(gate) > limit:
            chosen[end] = i
            activations[end] = gate
            end += 1
    matvec(neurons.up, neurons.up_scale, x, chosen, first, end, up)
    for i in range(first, end):
        activations[i] *= up[i] + neurons.up_bias[chosen[i]]
    weighted_rows(neurons.down, neurons.down_scale, activations, chosen, first, end, out)
    return end - first
