"""The compiled prompt: all of its tokens through one layer in one call, bound by arithmetic.

A call a layer, because methods look at each block's activations while a prompt is read, and keep none of them: one
layer's are all that is in memory. Between two barriers each thread has tokens of its own, or outputs of a matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .attention import PADDING, attend, combine
from .attention_loops import HEADS
from .barrier import barrier
from .decoder import Shape, Shared, add_update, position_heads, rms_norm
from .elementwise import add, gate_all
from .int8_matmul import neurons_times_tokens
from .launch import argument
from .layer import Neurons
from .matmul import Rounded, multiply_rows, outputs_of, outputs_share, round_token, tokens_of
from .nf4_loops import LOOP, f32
from .partition import share


class Scratch(NamedTuple):
    """What the threads write for each other, rows of tokens, and what each writes for itself.

    Rows and columns are filled up to what products are computed of (``matmul.tokens_of``, ``outputs_of``).
    """

    hidden: Rounded  # what query, key and value rows, and gate's and up's, are multiplied with
    mixed: Rounded  # what attention's output projection is
    active: Rounded  # what down is
    projected: np.ndarray  # float32 [tokens, q]
    update: np.ndarray  # float32 [tokens, d]
    up: np.ndarray  # float32 [tokens, d_ff]
    weights: np.ndarray  # float32 [threads, HEADS, T + PADDING], attention's
    outs: np.ndarray  # float32 [threads, 1, heads, head_dim]
    peaks: np.ndarray  # float32 [threads, 1, heads]
    sums: np.ndarray  # float32 [threads, 1, heads]
    heads: np.ndarray  # float32 [threads, heads, head_dim]

    @classmethod
    def of(cls, shape: Shape, hidden: Rounded, mixed: Rounded, active: Rounded, tokens: int, threads: int) -> Scratch:
        """For a prompt of so many ``tokens``; what is rounded has the sizes of d, of all heads and of d_ff."""
        count, all_heads = tokens_of(tokens), shape.heads + 2 * shape.kv_heads
        return cls(
            hidden=hidden,
            mixed=mixed,
            active=active,
            projected=_zeros(count, outputs_of(all_heads * shape.head_dim)),
            update=_zeros(count, outputs_of(hidden.codes.shape[1])),
            up=_zeros(count, outputs_of(active.codes.shape[1])),
            weights=_zeros(threads, HEADS, tokens + PADDING),
            outs=_zeros(threads, 1, shape.heads, shape.head_dim),
            peaks=_zeros(threads, 1, shape.heads),
            sums=_zeros(threads, 1, shape.heads),
            heads=_zeros(threads, shape.heads, shape.head_dim),
        )


def _zeros(*sizes: int) -> np.ndarray:
    return np.zeros(sizes, np.float32)


class PromptLayer(NamedTuple):
    """What a layer's call reads and writes; rows of tokens are filled up as ``Scratch`` has them."""

    layer: np.ndarray  # int64 [1], which layer it is
    shape: Shape
    shared: Shared
    neurons: Neurons
    first: np.ndarray  # int64 [layers + 1], each layer's first neuron
    cosines: np.ndarray  # float32 [tables, T, rotary]
    sines: np.ndarray  # float32 [tables, T, rotary]
    keys: np.ndarray  # float32 [layers, kv_heads, T, head_dim], the layer's written
    values: np.ndarray  # float32 [layers, kv_heads, T, head_dim], the layer's written
    x: np.ndarray  # float32 [T, d], what the layer is given, and gives
    normed: np.ndarray  # float32 [T, d], written: what the block is given
    activations: np.ndarray  # float32 [tokens, d_ff], written
    scratch: Scratch


@njit(**LOOP)
def take_layer(t, threads, counters, address, kind):
    """What thread ``t`` does of the ``PromptLayer`` at ``address``, of type ``kind`` (``launch.ParallelCall``)."""
    layer = argument(address, kind, "layer")[0]
    shape = argument(address, kind, "shape")
    shared = argument(address, kind, "shared")
    neurons = argument(address, kind, "neurons")
    first_neuron = argument(address, kind, "first")
    cosines = argument(address, kind, "cosines")
    sines = argument(address, kind, "sines")
    keys = argument(address, kind, "keys")[layer]
    values = argument(address, kind, "values")[layer]
    x = argument(address, kind, "x")
    normed = argument(address, kind, "normed")
    activations = argument(address, kind, "activations")
    scratch = argument(address, kind, "scratch")
    tokens, width, rows = x.shape[0], x.shape[1], shared.qkv.shape[1]
    projected, update, up = scratch.projected, scratch.update, scratch.up
    begin, end = share(tokens, t, threads)
    first, last = outputs_share(rows, t, threads)
    for token in range(begin, end):
        rms_norm(x[token], shared.norms[layer, 0], shape.epsilon, normed[token])
        round_token(normed[token], scratch.hidden, token)
    passed = barrier(counters, 0, threads)
    multiply_rows(shared.qkv[layer], shared.qkv_scale[layer], scratch.hidden, first, last, projected)
    passed = barrier(counters, passed, threads)
    cosine, sine = cosines[shared.rope[layer]], sines[shared.rope[layer]]
    for token in range(begin, end):
        row = projected[token, :rows]
        add(row, shared.qkv_bias[layer])
        _keep(row, shape, shared.head_norms[layer], cosine[token], sine[token], keys, values, token)
    passed = barrier(counters, passed, threads)
    for token in range(t, tokens, threads):  # by turns: a later one looks back on more
        _attend(t, token, projected[token, :rows], shape, shared.window[layer], keys, values, scratch)
    passed = barrier(counters, passed, threads)
    first, last = outputs_share(width, t, threads)
    multiply_rows(shared.out[layer], shared.out_scale[layer], scratch.mixed, first, last, update)
    passed = barrier(counters, passed, threads)
    for token in range(begin, end):
        row = update[token, :width]
        add(row, shared.out_bias[layer])
        add_update(x[token], row, shared.norms[layer, 1], shape.epsilon, shape.output_norms)
        rms_norm(x[token], shared.norms[layer, 2], shape.epsilon, normed[token])
        round_token(normed[token], scratch.hidden, token)
    passed = barrier(counters, passed, threads)
    start, stop = first_neuron[layer], first_neuron[layer + 1]
    gate, gate_scale = neurons.gate[start:stop], neurons.gate_scale[start:stop]
    own, own_last = outputs_share(stop - start, t, threads)
    multiply_rows(gate, gate_scale, scratch.hidden, own, own_last, activations)
    multiply_rows(neurons.up[start:stop], neurons.up_scale[start:stop], scratch.hidden, own, own_last, up)
    own_last = min(own_last, stop - start)
    gate_bias, up_bias = neurons.gate_bias[start:stop][own:own_last], neurons.up_bias[start:stop][own:own_last]
    for token in range(tokens):
        mine = activations[token, own:own_last]
        gate_all(mine, gate_bias, up[token, own:own_last], up_bias, shape.activation)
    passed = barrier(counters, passed, threads)
    for token in range(begin, end):
        round_token(activations[token, : stop - start], scratch.active, token)
    passed = barrier(counters, passed, threads)
    active = scratch.active
    down, output_scale = neurons.down[start:stop], shared.output_scale[layer]
    neurons_times_tokens(down, output_scale, active.codes, active.units, first, last, update)
    passed = barrier(counters, passed, threads)
    for token in range(begin, end):
        row = update[token, :width]
        add(row, shared.down_bias[layer])
        add_update(x[token], row, shared.norms[layer, 3], shape.epsilon, shape.output_norms)


@njit(**LOOP)
def _keep(row, shape, norms, cosine, sine, keys, values, token):
    """Positions a token's heads, float32 [q], in place, and keeps its keys and values."""
    heads, kv_heads = shape.heads, shape.kv_heads
    by_head = row.reshape(heads + 2 * kv_heads, shape.head_dim)
    position_heads(by_head, 0, heads, norms[0], cosine, sine, shape)
    position_heads(by_head, heads, heads + kv_heads, norms[1], cosine, sine, shape)
    for h in range(kv_heads):
        keys[h, token] = by_head[heads + h]
        values[h, token] = by_head[heads + kv_heads + h]


@njit(**LOOP)
def _attend(t, token, row, shape, window, keys, values, scratch):
    """What a token's heads, of ``row`` float32 [q], gather from itself and the tokens before it, rounded."""
    queries = row[: shape.heads * shape.head_dim].reshape(shape.heads, shape.head_dim)
    end = token + 1
    begin = max(0, end - window) if window > 0 else 0
    outs, peaks, sums, mixed = scratch.outs[t], scratch.peaks[t], scratch.sums[t], scratch.heads[t]
    scale, cap, weights = f32(shape.attention_scale), shape.attention_cap, scratch.weights[t]
    attend(queries, keys, values, begin, end, scale, cap, weights, outs[0], peaks[0], sums[0])
    combine(outs, peaks, sums, mixed)
    round_token(mixed.reshape(mixed.size), scratch.mixed, token)


@njit(**LOOP)
def final_norm(x, weight, epsilon, out):
    """The last token's, of x float32 [T, d]."""
    rms_norm(x[x.shape[0] - 1], weight, epsilon, out)
