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
from .elementwise import add, cap_all, copy, gate_all
from .int8_matmul import neurons_times_tokens
from .launch import argument
from .layer import Neurons
from .matmul import Rounded, multiply_rows, outputs_of, outputs_share, round_token, tokens_of
from .partition import share
from .rows import LOOP, f32, matvec


class PromptScratch(NamedTuple):
    """What the threads write for each other, rows of tokens, and what each writes for itself.

    Rows and columns are filled up to what products are computed of (``matmul.tokens_of``, ``outputs_of``).
    """

    hidden: Rounded  # what query, key and value rows, and gate's and up's, are multiplied with
    mixed: Rounded  # what attention's output projection is
    active: Rounded  # what down is
    projected: np.ndarray  # float32 [tokens, q]
    positioned: np.ndarray  # float32 [T, heads + 2 kv_heads, head_dim], the same with biases, norms and positions
    update: np.ndarray  # float32 [tokens, d]
    up: np.ndarray  # float32 [tokens, d_ff]
    weights: np.ndarray  # float32 [threads, HEADS, T + PADDING], attention's
    outs: np.ndarray  # float32 [threads, 1, heads, head_dim]
    peaks: np.ndarray  # float32 [threads, 1, heads]
    sums: np.ndarray  # float32 [threads, 1, heads]
    heads: np.ndarray  # float32 [threads, heads, head_dim]
    last: np.ndarray  # float32 [threads, d]

    @classmethod
    def of(
        cls, shape: Shape, hidden: Rounded, mixed: Rounded, active: Rounded, width: int, tokens: int, threads: int
    ) -> PromptScratch:
        """For a prompt of so many ``tokens``; ``width`` is d."""
        count, all_heads = tokens_of(tokens), shape.heads + 2 * shape.kv_heads
        return cls(
            hidden=hidden,
            mixed=mixed,
            active=active,
            projected=_zeros(count, outputs_of(all_heads * shape.head_dim)),
            positioned=_zeros(tokens, all_heads, shape.head_dim),
            update=_zeros(count, outputs_of(width)),
            up=_zeros(count, outputs_of(active.codes.shape[1])),
            weights=_zeros(threads, HEADS, tokens + PADDING),
            outs=_zeros(threads, 1, shape.heads, shape.head_dim),
            peaks=_zeros(threads, 1, shape.heads),
            sums=_zeros(threads, 1, shape.heads),
            heads=_zeros(threads, shape.heads, shape.head_dim),
            last=_zeros(threads, width),
        )


def _zeros(*sizes: int) -> np.ndarray:
    return np.zeros(sizes, np.float32)


class PromptLayer(NamedTuple):
    """What a layer's call reads and writes; rows of tokens are filled up as ``PromptScratch`` has them."""

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
    logits: np.ndarray  # float32 [vocabulary], written by the last layer: those after the last token
    scratch: PromptScratch


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
    tokens, width = x.shape
    heads, kv_heads, layers, rows = shape.heads, shape.kv_heads, shared.qkv.shape[0], shared.qkv.shape[1]
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
        by_head, norms = scratch.positioned[token], shared.head_norms[layer]
        _split_heads(projected[token], shared.qkv_bias[layer], by_head)
        position_heads(by_head, 0, heads, norms[0], cosine[token], sine[token], shape)
        position_heads(by_head, heads, heads + kv_heads, norms[1], cosine[token], sine[token], shape)
        for h in range(kv_heads):
            copy(by_head[heads + h], keys[h, token])
            copy(by_head[heads + kv_heads + h], values[h, token])
    passed = barrier(counters, passed, threads)
    for token in range(t, tokens, threads):  # by turns: a later one looks back on more
        _attend(t, token, shape, shared.window[layer], keys, values, scratch)
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
    if layer == layers - 1:
        passed = barrier(counters, passed, threads)
        last_normed, logits = scratch.last[t], argument(address, kind, "logits")
        rms_norm(x[tokens - 1], shared.final_norm, shape.epsilon, last_normed)
        first, last = share(len(logits), t, threads)
        matvec(shared.head, shared.head_scale, last_normed, None, first, last, logits)
        if shape.final_cap > 0:
            cap_all(logits[first:last], shape.final_cap)
        _pass_on_nan(logits[first:last], last_normed)


@njit(**LOOP)
def _pass_on_nan(logits, x):
    """Makes ``logits`` NaN where x float32 [d], which they were computed from, holds one: rounding leaves that out."""
    total = f32(0)
    for j in range(x.shape[0]):
        total += x[j]
    if not np.isfinite(total):
        for j in range(logits.shape[0]):
            logits[j] = f32(np.nan)


@njit(**LOOP)
def _split_heads(row, bias, by_head):
    """A row of projections plus their bias, float32 [q], as ``by_head`` float32 [heads, head_dim]."""
    for h in range(by_head.shape[0]):
        head, begin = by_head[h], h * by_head.shape[1]
        for j in range(head.shape[0]):
            head[j] = row[begin + j] + bias[begin + j]


@njit(**LOOP)
def _attend(t, token, shape, window, keys, values, scratch):
    """What a token's heads gather from itself and the tokens before it, rounded."""
    queries = scratch.positioned[token, : shape.heads]
    end = token + 1
    begin = max(0, end - window) if window > 0 else 0
    outs, peaks, sums, mixed = scratch.outs[t], scratch.peaks[t], scratch.sums[t], scratch.heads[t]
    scale, cap, weights = f32(shape.attention_scale), shape.attention_cap, scratch.weights[t]
    attend(queries, keys, values, begin, end, scale, cap, weights, outs[0], peaks[0], sums[0])
    combine(outs, peaks, sums, mixed)
    round_token(mixed.reshape(mixed.size), scratch.mixed, token)
