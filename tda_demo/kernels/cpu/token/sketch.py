"""The sketch's kernel: a 4-bit copy predicts every neuron; where it is likely to err most, the neuron is computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ...q4_sizes import GROUP, RECORD, TILE
from ..elementwise import activate_all, add
from ..layer import kernel
from ..q4_columns import add_columns
from ..q4_rows import matvec, quantise
from ..q4_tiles import chunks_of
from ..rows import LOOP, f32
from ..scattered import compute


class Sketch(NamedTuple):
    """All layers' sketches, one neuron after the other, and the likely error above which a neuron is computed.

    The layer's neurons begin at ``starts``, its tiles of ``down`` at ``tiles``, both int64 [layers + 1]. The four kinds
    of error are those of ``methods.sketch.Errors``.
    """

    gate: np.ndarray  # uint8 [neurons, records, 40], as ``kernels.q4.Q4Rows``
    up: np.ndarray  # uint8 [neurons, records, 40]
    down: np.ndarray  # uint8 [tiles, 640 for every 32 outputs], as ``kernels.q4.Q4Columns``
    gate_error: np.ndarray  # float32 [neurons]
    up_error: np.ndarray  # float32 [neurons]
    down_error: np.ndarray  # float32 [neurons]
    norms: np.ndarray  # float32 [neurons]
    limits: np.ndarray  # float32 [layers]
    starts: np.ndarray
    tiles: np.ndarray


@njit(**LOOP)
def _estimate(gate, gate_bias, gate_error, up, up_bias, up_error, down_error, norms, length, activation, errors):
    """``gate`` = the neurons' activations by the sketch, ``errors`` = how far off each one's part is likely to be.

    ``gate`` and ``up`` are the sketch's products, ``length`` is the input's; all are of the same neurons.
    """
    moved = np.empty(gate.shape[0], f32)
    for i in range(gate.shape[0]):
        moved[i] = gate[i] + gate_error[i] * length
    activate_all(moved, gate_bias, activation)
    activate_all(gate, gate_bias, activation)
    for i in range(gate.shape[0]):
        linear = up[i] + up_bias[i]
        by_gate = (moved[i] - gate[i]) * linear * norms[i]
        by_up = gate[i] * (up_error[i] * length) * norms[i]
        gate[i] *= linear
        by_down = gate[i] * down_error[i]
        errors[i] = np.sqrt(by_gate * by_gate + by_up * by_up + by_down * by_down)


@kernel(Sketch)
def _predicted(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    records = rule.gate.shape[1]
    codes, factors = np.empty(records * RECORD, np.int8), np.empty((records, 4), f32)
    quantise(x, codes, factors)
    square = f32(0)
    for j in range(x.shape[0]):
        square += x[j] * x[j]
    length = np.sqrt(square)
    matvec(rule.gate, codes, factors, first, last, activations[first:last])
    matvec(rule.up, codes, factors, first, last, up[first:last])
    errors = np.empty(last - first, f32)
    _estimate(
        activations[first:last], neurons.gate_bias[first:last], rule.gate_error[first:last],
        up[first:last], neurons.up_bias[first:last], rule.up_error[first:last],
        rule.down_error[first:last], rule.norms[first:last], length, activation, errors,
    )  # fmt: skip
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
    added = np.zeros(chunks_of(rule.down) * GROUP, f32)
    add_columns(rule.down, rule.tiles[layer] + first_tile, rule.tiles[layer] + last_tile, rest, added)
    add(out, added)
    return end - first
