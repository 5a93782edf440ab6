"""The compiled decode step: one token through a whole decoder in one call, bound by the weight bytes it reads.

Compiled by numba for each storage format and kept on disk. A neuron's gate row, up row and down column each lie in one
piece, so a packed active set is read as contiguously as the whole block. Both arms run this same code: a dense arm's
active set is all neurons.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from .attention import PADDING, attend, combine
from .attention_loops import HEADS
from .barrier import barrier
from .decoder import Shape, Shared, add_update, position_heads, rms_norm
from .elementwise import add, cap_all, copy
from .embedding import Embedding, embed
from .halves import keep
from .launch import argument
from .layer import OUT, QKV, Neurons, mlp, project
from .partition import share
from .rows import LOOP, f32, matvec


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
def _add_up(parts, out):
    for j in range(out.shape[0]):
        out[j] = parts[0, j]
    for t in range(1, parts.shape[0]):
        add(out, parts[t])


class Scratch(NamedTuple):
    """What the threads of a step write for each other, float32, and what each writes for itself."""

    projected: np.ndarray  # [q]
    update: np.ndarray  # [d]
    partial: np.ndarray  # [threads, d], what each thread's neurons give
    outs: np.ndarray  # [2 threads, heads, head_dim], of each thread's positions in the prompt, and after it
    peaks: np.ndarray  # [2 threads, heads]
    sums: np.ndarray  # [2 threads, heads]
    up: np.ndarray  # [places]
    weights: np.ndarray  # [threads, HEADS, positions + PADDING], attention's
    vectors: np.ndarray  # [threads, 3, d]
    heads: np.ndarray  # [threads, heads + 2 kv_heads, head_dim]
    mixed: np.ndarray  # [threads, heads, head_dim]

    @classmethod
    def of(cls, shape: Shape, width: int, threads: int, places: int, positions: int) -> Scratch:
        all_heads = shape.heads + 2 * shape.kv_heads
        sizes = {
            "projected": (all_heads * shape.head_dim,),
            "update": (width,),
            "partial": (threads, width),
            "outs": (2 * threads, shape.heads, shape.head_dim),
            "peaks": (2 * threads, shape.heads),
            "sums": (2 * threads, shape.heads),
            "up": (places,),
            "weights": (threads, HEADS, positions + PADDING),
            "vectors": (threads, 3, width),
            "heads": (threads, all_heads, shape.head_dim),
            "mixed": (threads, shape.heads, shape.head_dim),
        }
        return cls(**{name: np.zeros(size, np.float32) for name, size in sizes.items()})


class Cache(NamedTuple):
    """Keys and values of the tokens before, in two stretches, and where among them the token is.

    They are float32, or half precision as ``halves`` has it.
    """

    position: np.ndarray  # int64 [1], how many tokens came before
    cosines: np.ndarray  # float32 [tables, positions, rotary]
    sines: np.ndarray  # float32 [tables, positions, rotary]
    prompt_keys: np.ndarray  # [layers, kv_heads, tokens, head_dim], of the prompt, which other arms read too
    prompt_values: np.ndarray  # [layers, kv_heads, tokens, head_dim]
    keys: np.ndarray  # [layers, kv_heads, room, head_dim], of what follows; the token's row is written
    values: np.ndarray  # [layers, kv_heads, room, head_dim]; the token's row is written


class Step(NamedTuple):
    """What a decode step reads and writes.

    ``rule`` is a token-level method's arrays (``layer``), which writes the neurons it computes into ``active.chosen``,
    or low-bit copies of the neurons left out (``rest``); None where these give nothing.
    """

    embedding: Embedding
    shape: Shape
    shared: Shared
    neurons: Neurons
    active: Active
    rule: Any
    cache: Cache
    activations: np.ndarray  # float32 [places], written: the active neurons' activations
    computed: np.ndarray  # int64 [layers, threads], written: how many neurons each thread computed
    logits: np.ndarray  # float32 [vocabulary], written
    scratch: Scratch


@njit(**LOOP)
def _attend(t, threads, layer, shape, head_norms, rope, window, cache, scratch, by_head):
    """The positions of one thread, for all heads. The one that has the token's own writes its key and value.

    ``rope`` and ``window`` are the layer's. What is passed has the same type whatever the matrices' format and the rule
    are: this is compiled once for all steps, and once more for caches of halves.
    """
    heads, kv_heads, position = shape.heads, shape.kv_heads, cache.position[0]
    cosine, sine = cache.cosines[rope, position], cache.sines[rope, position]
    position_heads(by_head, 0, heads, head_norms[layer, 0], cosine, sine, shape)
    prompt = cache.prompt_keys.shape[2]
    if t == threads - 1:
        position_heads(by_head, heads, heads + kv_heads, head_norms[layer, 1], cosine, sine, shape)
        for h in range(kv_heads):
            keep(by_head[heads + h], cache.keys[layer, h, position - prompt])
            keep(by_head[heads + kv_heads + h], cache.values[layer, h, position - prompt])
    end = position + 1
    begin = max(0, end - window) if window > 0 else 0
    first, last = share(end - begin, t, threads)
    first, last = begin + first, begin + last
    queries, scale, cap, weights = by_head[:heads], f32(shape.attention_scale), shape.attention_cap, scratch.weights[t]
    keys, values, one = cache.prompt_keys[layer], cache.prompt_values[layer], 2 * t
    outs, peaks, sums = scratch.outs[one], scratch.peaks[one], scratch.sums[one]
    attend(queries, keys, values, min(first, prompt), min(last, prompt), scale, cap, weights, outs, peaks, sums)
    keys, values, other = cache.keys[layer], cache.values[layer], 2 * t + 1
    outs, peaks, sums = scratch.outs[other], scratch.peaks[other], scratch.sums[other]
    first, last = max(first, prompt) - prompt, max(last, prompt) - prompt
    attend(queries, keys, values, first, last, scale, cap, weights, outs, peaks, sums)


@njit(**LOOP)
def take_step(t, threads, counters, address, kind):
    """What thread ``t`` does of the ``Step`` at ``address``, of type ``kind`` (``launch.ParallelCall``).

    What is short, each thread does for itself: it costs less than to wait for another.
    """
    shape = argument(address, kind, "shape")
    shared = argument(address, kind, "shared")
    neurons = argument(address, kind, "neurons")
    active = argument(address, kind, "active")
    rule = argument(address, kind, "rule")
    cache = argument(address, kind, "cache")
    scratch = argument(address, kind, "scratch")
    embedding = argument(address, kind, "embedding")
    activations = argument(address, kind, "activations")
    computed = argument(address, kind, "computed")
    logits = argument(address, kind, "logits")
    epsilon = shape.epsilon
    layers, rows, width = shared.qkv.shape[0], shared.qkv.shape[1], embedding.rows.shape[1]
    x, normed, update = scratch.vectors[t, 0], scratch.vectors[t, 1], scratch.vectors[t, 2]
    projected, by_head, mixed = scratch.projected, scratch.heads[t], scratch.mixed[t]
    row, last_row = share(rows, t, threads)
    first, last = share(width, t, threads)
    passed = 0
    embed(embedding.rows, embedding.scales, embedding.token[0], x)
    for layer in range(layers):
        rms_norm(x, shared.norms[layer, 0], epsilon, normed)
        project(rule, layer, QKV, shared.qkv[layer], shared.qkv_scale[layer], normed, row, last_row, projected)
        add(projected[row:last_row], shared.qkv_bias[layer, row:last_row])
        passed = barrier(counters, passed, threads)
        copy(projected, by_head.reshape(rows))
        rope, window = shared.rope[layer], shared.window[layer]
        _attend(t, threads, layer, shape, shared.head_norms, rope, window, cache, scratch, by_head)
        passed = barrier(counters, passed, threads)
        combine(scratch.outs, scratch.peaks, scratch.sums, mixed)
        flat = mixed.reshape(mixed.size)
        project(rule, layer, OUT, shared.out[layer], shared.out_scale[layer], flat, first, last, scratch.update)
        add(scratch.update[first:last], shared.out_bias[layer, first:last])
        passed = barrier(counters, passed, threads)
        copy(scratch.update, update)
        add_update(x, update, shared.norms[layer, 1], epsilon, shape.output_norms)

        rms_norm(x, shared.norms[layer, 2], epsilon, normed)
        start = active.first[layer]
        place, last_place = share(active.first[layer + 1] - start, t, threads)
        computed[layer, t] = mlp(
            rule,
            layer,
            t,
            threads,
            neurons,
            active.chosen,
            normed,
            start + place,
            start + last_place,
            shape.activation,
            scratch.up,
            activations,
            scratch.partial[t],
        )
        passed = barrier(counters, passed, threads)
        _add_up(scratch.partial, update)
        for j in range(width):
            update[j] = update[j] * shared.output_scale[layer, j] + shared.down_bias[layer, j]
        add_update(x, update, shared.norms[layer, 3], epsilon, shape.output_norms)

    rms_norm(x, shared.final_norm, epsilon, normed)
    first, last = share(len(logits), t, threads)
    matvec(shared.head, shared.head_scale, normed, None, first, last, logits)
    if shape.final_cap > 0:
        cap_all(logits[first:last], shape.final_cap)


@njit(parallel=True, **LOOP)
def gather(codes, chosen, threads, out):
    """Copies of the rows ``chosen`` int64 [k]: out[i] = codes[chosen[i]]."""
    for t in prange(threads):
        first, last = share(len(chosen), t, threads)
        for i in range(first, last):
            source, target = codes[chosen[i]], out[i]
            for j in range(target.shape[0]):
                target[j] = source[j]
