"""The rest's kernel: packed neurons are computed exactly, and those left out from packed low-bit copies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ..q4_sizes import GROUP, RECORD, TILE
from .elementwise import add, gate_all
from .layer import kernel, mlp
from .partition import share
from .q4_columns import add_columns, ask_for_columns
from .q4_rows import STREAMS, matvec, quantise
from .q4_tiles import chunks_of
from .rows import LOOP, f32
from .vectors import ask_for

_LINES = 6  # of a stream's beginning


class Rest(NamedTuple):
    """Copies of the neurons that an active set leaves out (``kernels.q4``), of all layers.

    Those of layer l are the first ``counts[l]`` from place ``32 * tiles[l]`` on, so that each layer's fill tiles of
    their own.
    """

    gate: np.ndarray  # uint8 [places, records, 40]
    up: np.ndarray  # uint8 [places, records, 40]
    down: np.ndarray  # uint8 [places / 32, 640 for every 32 outputs]
    gate_bias: np.ndarray  # float32 [places]
    up_bias: np.ndarray  # float32 [places]
    tiles: np.ndarray  # int64 [layers]
    counts: np.ndarray  # int64 [layers]


@njit(**LOOP)
def _places(rule, layer, thread, threads):
    """The first tile of a thread's share, the last one's end, and the first place and how many there are."""
    first, last = share(-(-rule.counts[layer] // TILE), thread, threads)
    first, last = rule.tiles[layer] + first, rule.tiles[layer] + last
    start = first * TILE
    return first, last, start, min(last * TILE, rule.tiles[layer] * TILE + rule.counts[layer]) - start


@njit(**LOOP)
def _ask_for_what_follows(rule, start, count):
    """Has the beginnings of all streams (``q4_rows``) on their way while the exact neurons are computed."""
    for k in range(STREAMS):
        place = start + k * (count // STREAMS)
        ask_for(rule.gate, place, _LINES)
        ask_for(rule.up, place, _LINES)


@kernel(Rest)
def _with_rest(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    first_tile, last_tile, start, count = _places(rule, layer, thread, threads)
    if count > 0:
        _ask_for_what_follows(rule, start, count)
    computed = mlp(None, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out)
    if count <= 0:
        return computed
    records, chunks = rule.gate.shape[1], chunks_of(rule.down)
    codes, factors = np.empty(records * RECORD, np.int8), np.empty((records, 4), f32)
    quantise(x, codes, factors)
    a, linear = np.zeros((last_tile - first_tile) * TILE, f32), np.empty(count, f32)
    matvec(rule.gate, codes, factors, start, start + count, a)
    matvec(rule.up, codes, factors, start, start + count, linear)
    end = start + count
    ask_for_columns(rule.down, first_tile)
    gate_all(a[:count], rule.gate_bias[start:end], linear, rule.up_bias[start:end], activation)
    added = np.zeros(chunks * GROUP, f32)
    add_columns(rule.down, first_tile, last_tile, a, added)
    add(out, added)
    return computed
