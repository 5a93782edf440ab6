"""The sketch's kernel: a 4-bit copy predicts every neuron; where it is likely to err most, the neuron is computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...q4_sizes import GROUP, RECORD, TILE
from ..elementwise import activate_all
from ..layer import kernel
from ..q4_columns import add_columns
from ..q4_rows import matvec, quantise
from ..rows import f32
from ..scattered import compute


class Sketch(NamedTuple):
    """All layers' sketches, one neuron after the other, and the likely error above which a neuron is computed.

    The layer's neurons begin at ``starts``, its tiles of ``down`` at ``tiles``, both int64 [layers + 1]. The four kinds
    of error are those of ``methods.sketch.Errors``.
    """

    gate: np.ndarray  # uint8 [neurons, records, 40], as ``kernels.q4.Q4Rows``
    up: np.ndarray  # uint8 [neurons, records, 40]
    down: np.ndarray  # uint8 [tiles, chunks, 640], as ``kernels.q4.Q4Columns``
    gate_error: np.ndarray  # float32 [neurons]
    up_error: np.ndarray  # float32 [neurons]
    down_error: np.ndarray  # float32 [neurons]
    norms: np.ndarray  # float32 [neurons]
    limits: np.ndarray  # float32 [layers]
    starts: np.ndarray
    tiles: np.ndarray


@kernel(Sketch)
def _predicted(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    columns = x.shape[0]
    records = rule.gate.shape[1]
    codes, factors = np.empty(records * RECORD, np.int8), np.empty((records, 4), f32)
    quantise(x, codes, factors)
    square = f32(0)
    for j in range(columns):
        square += x[j] * x[j]
    length = np.sqrt(square)
    matvec(rule.gate, codes, factors, first, last, activations[first:last])
    matvec(rule.up, codes, factors, first, last, up[first:last])
    moved, errors = np.empty(last - first, f32), np.empty(last - first, f32)
    for i in range(first, last):
        activations[i] += neurons.gate_bias[i]
        moved[i - first] = activations[i] + rule.gate_error[i] * length
        up[i] += neurons.up_bias[i]
    activate_all(activations, first, last, activation)
    activate_all(moved, np.int64(0), last - first, activation)
    for i in range(first, last):
        by_gate = (moved[i - first] - activations[i]) * up[i] * rule.norms[i]
        by_up = activations[i] * (rule.up_error[i] * length) * rule.norms[i]
        activations[i] *= up[i]
        by_down = activations[i] * rule.down_error[i]
        errors[i - first] = np.sqrt(by_gate * by_gate + by_up * by_up + by_down * by_down)
    limit, end = rule.limits[layer], first
    start = rule.starts[layer]
    first_tile, last_tile = (first - start) // TILE, -(-(last - start) // TILE)
    offset = start + first_tile * TILE
    rest = np.zeros((last_tile - first_tile) * TILE, f32)
    for i in range(first, last):
        fires = errors[i - first] > limit
        rest[i - offset] = f32(0) if fires else activations[i]
        chosen[end] = i
        end += fires
    compute(neurons, x, chosen, first, end, activation, up, activations, out)
    added = np.zeros(rule.down.shape[1] * GROUP, f32)
    add_columns(rule.down, rule.tiles[layer] + first_tile, rule.tiles[layer] + last_tile, rest, added)
    for j in range(columns):
        out[j] += added[j]
    return end - first
