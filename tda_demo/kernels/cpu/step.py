"""The compiled decode step: one token through a whole decoder in one call, bound by the weight bytes it reads.

Compiled by numba for each storage format and kept on disk. A neuron's gate row, up row and down column each lie in one
piece, so a packed active set is read as contiguously as the whole block. Both arms run this same code: a dense arm's
active set is all neurons.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from .attention import attend, combine
from .elementwise import tanh
from .layer import OUT, QKV, mlp, project
from .rows import LOOP, f32, matvec


class Shape(NamedTuple):
    """Sizes and constants of a decoder. A cap of 0 means none; ``rotary`` is half the rotated part of a head."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    activation: int
    epsilon: float
    attention_scale: float
    attention_cap: float
    final_cap: float
    output_norms: bool
    head_norms: bool


class Shared(NamedTuple):
    """Weights both arms read, layer first; d = hidden size, q = query, key and value rows together."""

    norms: np.ndarray  # float32 [layers, 4, d]: before attention, after it, before the MLP, after it
    head_norms: np.ndarray  # float32 [layers, 2, head_dim]: of queries, of keys
    qkv: np.ndarray  # codes [layers, q, ...] of rows of d
    qkv_scale: np.ndarray  # float32 [layers, q, ...], as ``formats.Rows.scales``
    qkv_bias: np.ndarray  # float32 [layers, q]
    out: np.ndarray  # codes [layers, d, ...] of rows of heads * head_dim
    out_scale: np.ndarray  # float32 [layers, d, ...]
    out_bias: np.ndarray  # float32 [layers, d]
    output_scale: np.ndarray  # float32 [layers, d], of the MLP's outputs
    down_bias: np.ndarray  # float32 [layers, d]
    final_norm: np.ndarray  # float32 [d]
    head: np.ndarray  # codes [vocabulary, ...] of rows of d
    head_scale: np.ndarray  # float32 [vocabulary, ...]
    window: np.ndarray  # int64 [layers], positions a layer attends to; 0 for all
    rope: np.ndarray  # int64 [layers], which of the cosine tables a layer uses


class Active(NamedTuple):
    """The neurons a step computes: those of layer l at the places ``first[l] : first[l + 1]``.

    ``chosen`` says which neuron a place stands for; None where the places are the neurons themselves, all of them or
    packed copies of some. In place, with ``chosen``, an active set may be another one at every step, but a step over
    scattered neurons reads 62 to 83 % of the bytes a second that one over packed copies does (nf4 to float32, half of
    the neurons kept, each lying in one piece).
    """

    first: np.ndarray  # int64 [layers + 1]
    chosen: np.ndarray | None  # int64 [places], ascending within a layer


@njit(**LOOP)
def _rms_norm(x, weight, epsilon, out):
    total = f32(0)
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    factor = f32(1) / np.sqrt(total / f32(x.shape[0]) + f32(epsilon))
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j]


@njit(**LOOP)
def _rotate(head, cosine, sine):
    """Rotary embedding of one head in place: pairs (j, j + half), what lies beyond them unchanged."""
    half = cosine.shape[0]
    for j in range(half):
        a, b = head[j], head[j + half]
        head[j] = a * cosine[j] - b * sine[j]
        head[j + half] = b * cosine[j] + a * sine[j]


@njit(**LOOP)
def _add(x, update, weight, epsilon, normalise):
    """x += update, normalised first where the family has output norms."""
    if normalise:
        _rms_norm(update, weight, epsilon, update)
    for j in range(x.shape[0]):
        x[j] += update[j]


@njit(parallel=True, cache=True, **LOOP)
def step(
    x,
    position,
    threads,
    shape,
    shared,
    neurons,
    active,
    rule,
    cosines,
    sines,
    keys,
    values,
    activations,
    computed,
    logits,
):
    """One decode step.

    Args:
        x: float32 [d], the token's embedding; overwritten.
        position: how many tokens came before.
        rule: a token-level method's arrays (``layer``), which writes the neurons it computes into
            ``active.chosen``, or low-bit copies of the neurons left out (``rest``); None where these give nothing.
        cosines, sines: float32 [tables, positions, rotary].
        keys, values: float32 [layers, kv_heads, positions, head_dim]; position's row is written.
        activations: float32 [places], written; the active neurons' activations.
        computed: int64 [layers, threads], written; how many neurons each thread computed.
        logits: float32 [vocabulary], written.
    """
    heads, kv_heads, head_dim, epsilon = shape.heads, shape.kv_heads, shape.head_dim, shape.epsilon
    layers, rows = shared.qkv.shape[0], shared.qkv.shape[1]
    width = x.shape[0]
    end = position + 1
    normed, update = np.empty(width, f32), np.empty(width, f32)
    projected, mixed = np.empty(rows, f32), np.empty(heads * head_dim, f32)
    weights, partial = np.empty((threads, end), f32), np.empty((threads, width), f32)
    outs = np.empty((threads, heads, head_dim), f32)
    peaks, sums = np.empty((threads, heads), f32), np.empty((threads, heads), f32)
    up, scale = np.empty_like(activations), np.full(end, f32(shape.attention_scale))
    for layer in range(layers):
        _rms_norm(x, shared.norms[layer, 0], epsilon, normed)
        for t in prange(threads):
            project(
                rule,
                layer,
                QKV,
                shared.qkv[layer],
                shared.qkv_scale[layer],
                normed,
                rows * t // threads,
                rows * (t + 1) // threads,
                projected,
            )
        for j in range(rows):
            projected[j] += shared.qkv_bias[layer, j]
        by_head = projected.reshape(heads + 2 * kv_heads, head_dim)
        cosine, sine = cosines[shared.rope[layer], position], sines[shared.rope[layer], position]
        for h in range(heads + kv_heads):
            if shape.head_norms:
                _rms_norm(by_head[h], shared.head_norms[layer, 0 if h < heads else 1], epsilon, by_head[h])
            _rotate(by_head[h], cosine, sine)
        for h in range(kv_heads):
            for j in range(head_dim):
                keys[layer, h, position, j] = by_head[heads + h, j]
                values[layer, h, position, j] = by_head[heads + kv_heads + h, j]
        window = shared.window[layer]
        begin = max(0, end - window) if window > 0 else 0
        for t in prange(threads):
            attend(
                by_head[:heads],
                keys[layer],
                values[layer],
                begin + (end - begin) * t // threads,
                begin + (end - begin) * (t + 1) // threads,
                scale,
                shape.attention_cap,
                weights[t],
                outs[t],
                peaks[t],
                sums[t],
            )
        combine(outs, peaks, sums, mixed.reshape(heads, head_dim))
        for t in prange(threads):
            project(
                rule,
                layer,
                OUT,
                shared.out[layer],
                shared.out_scale[layer],
                mixed,
                width * t // threads,
                width * (t + 1) // threads,
                update,
            )
        for j in range(width):
            update[j] += shared.out_bias[layer, j]
        _add(x, update, shared.norms[layer, 1], epsilon, shape.output_norms)

        _rms_norm(x, shared.norms[layer, 2], epsilon, normed)
        start, count = active.first[layer], active.first[layer + 1] - active.first[layer]
        for t in prange(threads):
            computed[layer, t] = mlp(
                rule,
                layer,
                t,
                threads,
                neurons,
                active.chosen,
                normed,
                start + count * t // threads,
                start + count * (t + 1) // threads,
                shape.activation,
                up,
                activations,
                partial[t],
            )
        for j in range(width):
            total = f32(0)
            for t in range(threads):
                total += partial[t, j]
            update[j] = total * shared.output_scale[layer, j] + shared.down_bias[layer, j]
        _add(x, update, shared.norms[layer, 3], epsilon, shape.output_norms)

    _rms_norm(x, shared.final_norm, epsilon, normed)
    vocabulary = logits.shape[0]
    for t in prange(threads):
        begin, last = vocabulary * t // threads, vocabulary * (t + 1) // threads
        matvec(shared.head, shared.head_scale, normed, None, begin, last, logits)
        if shape.final_cap > 0:
            for i in range(begin, last):
                logits[i] = f32(shape.final_cap) * tanh(logits[i] / f32(shape.final_cap))


@njit(parallel=True, nogil=True, cache=True)
def gather(codes, chosen, threads, out):
    """Copies of the rows ``chosen`` int64 [k]: out[i] = codes[chosen[i]]."""
    for t in prange(threads):
        for i in range(len(chosen) * t // threads, len(chosen) * (t + 1) // threads):
            source, target = codes[chosen[i]], out[i]
            for j in range(target.shape[0]):
                target[j] = source[j]
