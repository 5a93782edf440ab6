"""The sketch's kernel: a 4-bit copy of gate and up predicts every neuron, those predicted strong are computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...sketch import BLOCK, MIDDLE
from ..elementwise import activate
from ..mlp import kernel
from ..nibbles import quantise, row_times
from ..rows import f32, matvec, weighted_rows

_MIDDLE = f32(MIDDLE)
_HALF = BLOCK // 2


class Sketch(NamedTuple):
    """All layers' sketches, one neuron after the other, and the predicted strength above which a neuron is computed."""

    gate: np.ndarray  # uint8 [neurons, ...], codes of ``kernels.sketch``
    up: np.ndarray  # uint8 [neurons, ...]
    gate_scale: np.ndarray  # float32 [neurons]
    up_scale: np.ndarray  # float32 [neurons]
    norms: np.ndarray  # float32 [neurons], of the columns of down
    limits: np.ndarray  # float32 [layers]


@kernel(Sketch)
def _predicted(rule, layer, neurons, chosen, x, first, last, activation, up, activations, out):
    codes = np.zeros(rule.gate.shape[1] // _HALF * BLOCK, np.int8)
    unit, total = quantise(x, codes)
    shift = _MIDDLE * f32(total)
    for i in range(first, last):
        activations[i] = f32(row_times(rule.gate, i, codes))
    for i in range(first, last):
        up[i] = f32(row_times(rule.up, i, codes))
    for i in range(first, last):
        gate = (activations[i] - shift) * (rule.gate_scale[i] * unit) + neurons.gate_bias[i]
        linear = (up[i] - shift) * (rule.up_scale[i] * unit) + neurons.up_bias[i]
        activations[i] = abs(activate(gate, activation) * linear) * rule.norms[i]
    limit, end = rule.limits[layer], first
    for i in range(first, last):
        chosen[end] = i
        end += activations[i] > limit
    matvec(neurons.gate, neurons.gate_scale, x, chosen, first, end, activations)
    matvec(neurons.up, neurons.up_scale, x, chosen, first, end, up)
    for i in range(first, end):
        neuron = chosen[i]
        gate = activations[i] + neurons.gate_bias[neuron]
        activations[i] = activate(gate, activation) * (up[i] + neurons.up_bias[neuron])
    weighted_rows(neurons.down, neurons.down_scale, activations, chosen, first, end, out)
    return end - first
