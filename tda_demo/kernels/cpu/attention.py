"""Attention inside the compiled step: a thread's share of the positions, then the shares together. Of a prompt, whose
tokens the threads share, one share is all.

Threads share positions and not heads, as Flash-Decoding does (Dao and others, 2023): all have equally many, and
keys and values are read from memory once.
"""

from __future__ import annotations

from numba import njit

from .attention_loops import HEADS, LINE, mix, score
from .elementwise import cap_all, exp
from .halves import number
from .rows import LOOP, f32

PADDING = 32  # numbers: loops over numbers take so many at once, and what is left one by one

_LOWEST = f32(-3e38)


@njit(**LOOP)
def attend(queries, keys, values, begin, end, scale, cap, weights, outs, peaks, sums):
    """Positions begin to end of one layer, for all heads.

    Args:
        queries: float32 [heads, head_dim].
        keys, values: float32 or halves [kv_heads, positions, head_dim].
        scale: float32, of a product.
        cap: of a scaled product; 0 for none.
        weights: float32 [HEADS, positions + PADDING], scratch.
        outs: float32 [heads, head_dim], written: values weighted by exp(product - peak), added up.
        peaks, sums: float32 [heads], written: the highest product, and the weights added up.
    """
    kv_heads = keys.shape[0]
    group = queries.shape[0] // kv_heads
    for kv in range(kv_heads):
        following = keys[min(kv + 1, kv_heads - 1)]
        for first in range(kv * group, (kv + 1) * group, HEADS):
            last = min(first + HEADS, (kv + 1) * group)
            score(keys[kv], begin, end, queries[first:last], scale, weights, values[kv])
            _score_other_columns(keys[kv], begin, end, queries[first:last], scale, weights)
            for h in range(first, last):
                peaks[h], sums[h] = _weigh(weights[h - first], end - begin, cap)
            mix(values[kv], begin, end, weights, outs[first:last], following)
            _mix_other_columns(values[kv], begin, end, weights, outs[first:last])


@njit(**LOOP)
def _weigh(products, count, cap):
    """The first ``count`` products as exp(product - peak), in place; returns the peak and their sum."""
    if count <= 0:
        return _LOWEST, f32(0)
    padded = (count + PADDING - 1) // PADDING * PADDING
    for p in range(count, padded):
        products[p] = _LOWEST
    if cap > 0:
        cap_all(products[:count], cap)
    highest, total = _LOWEST, f32(0)
    for p in range(padded):
        highest = max(highest, products[p])
    for p in range(padded):
        products[p] = exp(products[p] - highest)
        total += products[p]
    return highest, total


@njit(**LOOP)
def _score_other_columns(keys, begin, end, queries, scale, products):
    """Adds what ``score`` leaves out: columns that fill no line."""
    for column in range(keys.shape[1] - keys.shape[1] % LINE, keys.shape[1]):
        for h in range(len(queries)):
            for p in range(begin, end):
                products[h, p - begin] += scale * queries[h, column] * number(keys[p, column])


@njit(**LOOP)
def _mix_other_columns(values, begin, end, weights, outs):
    """The columns that ``mix`` leaves out."""
    for column in range(values.shape[1] - values.shape[1] % LINE, values.shape[1]):
        for h in range(len(outs)):
            total = f32(0)
            for p in range(begin, end):
                total += weights[h, p - begin] * number(values[p, column])
            outs[h, column] = total


@njit(**LOOP)
def combine(outs, peaks, sums, mixed):
    """The softmax over all positions from its shares [threads, heads, ...], in ``mixed`` float32 [heads, head_dim]."""
    threads, heads, head_dim = outs.shape
    for h in range(heads):
        highest, total = _LOWEST, f32(0)
        for t in range(threads):
            highest = max(highest, peaks[t, h])
        for t in range(threads):
            total += exp(peaks[t, h] - highest) * sums[t, h]
        for t in range(threads):
            factor = exp(peaks[t, h] - highest) / total
            for j in range(head_dim):
                mixed[h, j] = factor * outs[t, h, j] + (mixed[h, j] if t else f32(0))
