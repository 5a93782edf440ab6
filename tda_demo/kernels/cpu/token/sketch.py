"""The sketch's kernel: a 4-bit copy predicts every neuron; where it is likely to err most, the neuron is computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...sketch import BLOCK, MIDDLE
from ..elementwise import activate_all
from ..layer import kernel
from ..nibbles import add_groups, quantise, row_times
from ..rows import f32
from ..scattered import compute

_MIDDLE = f32(MIDDLE)
_HALF = BLOCK // 2


class Sketch(NamedTuple):
    """All layers' sketches, one neuron after the other, and the likely error above which a neuron is computed.

    The layer's neurons begin at ``starts``, its groups of ``down`` at ``groups``, both int64 [layers]. The four kinds
    of error are those of ``methods.sketch.Errors``.
    """

    gate: np.ndarray  # uint8 [neurons, ...], codes of ``kernels.sketch``
    up: np.ndarray  # uint8 [neurons, ...]
    down: np.ndarray  # uint8 [groups, ...]
    gate_scale: np.ndarray  # float32 [neurons]
    up_scale: np.ndarray  # float32 [neurons]
    down_scale: np.ndarray  # float32 [neurons]
    gate_error: np.ndarray  # float32 [neurons]
    up_error: np.ndarray  # float32 [neurons]
    down_error: np.ndarray  # float32 [neurons]
    norms: np.ndarray  # float32 [neurons]
    limits: np.ndarray  # float32 [layers]
    starts: np.ndarray
    groups: np.ndarray


@kernel(Sketch)
def _predicted(rule, layer, neurons, chosen, x, first, last, activation, up, activations, out):
    columns = x.shape[0]
    codes = np.zeros(rule.gate.shape[1] // _HALF * BLOCK, np.int8)
    unit, total = quantise(x, codes)
    shift = _MIDDLE * f32(total)
    square = f32(0)
    for j in range(columns):
        square += x[j] * x[j]
    length = np.sqrt(square)
    half = (last - first) // 2
    for i in range(first, first + half):  # four streams, as in ``rows``
        j = i + half
        activations[i], activations[j] = f32(row_times(rule.gate, i, codes)), f32(row_times(rule.gate, j, codes))
        up[i], up[j] = f32(row_times(rule.up, i, codes)), f32(row_times(rule.up, j, codes))
    for i in range(first + 2 * half, last):
        activations[i], up[i] = f32(row_times(rule.gate, i, codes)), f32(row_times(rule.up, i, codes))
    moved, errors = np.empty(last - first, f32), np.empty(last - first, f32)
    for i in range(first, last):
        activations[i] = (activations[i] - shift) * (rule.gate_scale[i] * unit) + neurons.gate_bias[i]
        moved[i - first] = activations[i] + rule.gate_error[i] * length
        up[i] = (up[i] - shift) * (rule.up_scale[i] * unit) + neurons.up_bias[i]
    activate_all(activations, first, last, activation)
    activate_all(moved, 0, last - first, activation)
    for i in range(first, last):
        by_gate = (moved[i - first] - activations[i]) * up[i] * rule.norms[i]
        by_up = activations[i] * (rule.up_error[i] * length) * rule.norms[i]
        activations[i] *= up[i]
        by_down = activations[i] * rule.down_error[i]
        errors[i - first] = np.sqrt(by_gate * by_gate + by_up * by_up + by_down * by_down)
    limit, end = rule.limits[layer], first
    rest = np.empty(last - first, f32)
    for i in range(first, last):
        fires = errors[i - first] > limit
        rest[i - first] = f32(0) if fires else activations[i] * rule.down_scale[i]
        chosen[end] = i
        end += fires
    compute(neurons, x, chosen, first, end, activation, up, activations, out)
    added = np.zeros(rule.down.shape[1] * rule.down.shape[3], f32)
    add_groups(rule.down, rule.groups[layer], rule.starts[layer], first, last, rest, added)
    for j in range(columns):
        out[j] += added[j]
    return end - first
