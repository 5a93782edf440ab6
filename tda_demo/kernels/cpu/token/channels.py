"""TEAL's kernel: of every matrix a token reads the input channels whose magnitude exceeds the matrix's limit.

The matrices lie by input channel, so a channel left out is a piece of memory left out. Each thread computes some of a
matrix's outputs, its stretch of every channel that is read, so no sums of threads have to be added. A matrix is cut
into as many pieces as there are threads, so that a thread's stretches lie one behind the other: with gaps between them
int8 takes half again as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ..elementwise import gate_all, multiply
from ..layer import QKV, kernel, projection
from ..rows import LOOP, add_chosen, f32, weighted_rows


class Channels(NamedTuple):
    """Matrices by input channel: codes [layers, pieces, inputs, outputs / pieces]; down lies so anyway."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    out: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    limits: np.ndarray  # float32 [layers, 7], in this order, down last
    counts: np.ndarray  # int64 [layers, 6], written: channels read, down's aside


@njit(**LOOP)
def _columns(codes, x, limit, begin, out):
    """out = the sum over channels with |x_i| > limit of x_i times row i, its columns from ``begin`` on.

    Returns how many channels that were.
    """
    rows, weights = np.empty(x.shape[0], np.int64), np.empty(x.shape[0], f32)
    count = 0
    for i in range(x.shape[0]):
        rows[count] = i
        weights[count] = x[i]
        count += abs(x[i]) > limit
    add_chosen(codes, weights, rows, 0, count, begin, out)
    return count


@njit(**LOOP)
def _stretch(rule, matrix, codes, layer, x, offset, first, last, out):
    """The part of outputs first to last that a matrix gives whose first output is ``offset``."""
    width, limit = codes.shape[3], rule.limits[layer, matrix]
    for piece in range(codes.shape[1]):
        start = offset + piece * width
        begin, end = max(first, start), min(last, start + width)
        if begin < end:
            # Every thread and every piece finds the same number.
            rule.counts[layer, matrix] = _columns(codes[layer, piece], x, limit, begin - start, out[begin:end])


@projection(Channels)
def _projected(rule, layer, which, codes, scale, x, first, last, out):
    if which == QKV:
        queries, keys = rule.q.shape[1] * rule.q.shape[3], rule.k.shape[1] * rule.k.shape[3]
        _stretch(rule, 0, rule.q, layer, x, 0, first, last, out)
        _stretch(rule, 1, rule.k, layer, x, queries, first, last, out)
        _stretch(rule, 2, rule.v, layer, x, queries + keys, first, last, out)
    else:
        _stretch(rule, 3, rule.out, layer, x, 0, first, last, out)
    multiply(out[first:last], scale[first:last])


@kernel(Channels)
def _block(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    start = layer * rule.gate.shape[1] * rule.gate.shape[3]
    _stretch(rule, 4, rule.gate, layer, x, start, first, last, activations)
    _stretch(rule, 5, rule.up, layer, x, start, first, last, up)
    multiply(activations[first:last], neurons.gate_scale[first:last])
    multiply(up[first:last], neurons.up_scale[first:last])
    gate_bias, up_bias = neurons.gate_bias[first:last], neurons.up_bias[first:last]
    gate_all(activations[first:last], gate_bias, up[first:last], up_bias, activation)
    limit = rule.limits[layer, 6]
    end = first
    for i in range(first, last):
        a = activations[i]
        if abs(a) > limit:
            chosen[end] = i
            activations[end] = a
            end += 1
    weighted_rows(neurons.down, neurons.down_scale, activations, chosen, first, end, out)
    return end - first
