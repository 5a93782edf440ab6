"""Attention inside the compiled step: a thread's share of the positions, then the shares together.

Threads share positions and not heads, as Flash-Decoding does (Dao and others, 2023): all have equally many, and
keys and values are read from memory once. By the time a layer comes round again its cache has been pushed out by the
weights of all others, and a few kilobytes are over before the processor has noticed that they are read in order, so
they are asked for ahead.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .elementwise import exp, tanh
from .rows import LOOP, f32, matvec, weighted_rows
from .vectors import LINE, ask, constant, need_contiguous, pointer

_LOWEST = f32(-3e38)


@njit(**LOOP)
def attend(queries, keys, values, begin, end, scale, cap, weights, outs, peaks, sums):
    """Positions begin to end of one layer, for all heads.

    Args:
        queries: float32 [heads, head_dim].
        keys, values: float32 [kv_heads, positions, head_dim].
        scale: float32 [positions], the same number everywhere.
        cap: of a product; 0 for none.
        weights: float32 [positions], scratch.
        outs: float32 [heads, head_dim], written: values weighted by exp(product - peak), added up.
        peaks, sums: float32 [heads], written: the highest product, and the weights added up.
    """
    kv_heads = keys.shape[0]
    group = queries.shape[0] // kv_heads
    _ask_for(keys, 0, begin, end)
    for kv in range(kv_heads):
        _ask_for(values, kv, begin, end)
        for h in range(kv * group, (kv + 1) * group):
            highest, total = _LOWEST, f32(0)
            matvec(keys[kv], scale, queries[h], None, begin, end, weights)
            if cap > 0:
                for p in range(begin, end):
                    weights[p] = f32(cap) * tanh(weights[p] / f32(cap))
            for p in range(begin, end):
                highest = max(highest, weights[p])
            for p in range(begin, end):
                weights[p] = exp(weights[p] - highest)
                total += weights[p]
            weighted_rows(values[kv], scale, weights, None, begin, end, outs[h])
            peaks[h], sums[h] = highest, total
        if kv + 1 < kv_heads:
            _ask_for(keys, kv + 1, begin, end)


@njit(**LOOP)
def combine(outs, peaks, sums, mixed):
    """The softmax over all positions from its shares [threads, heads, ...], in ``mixed`` float32 [heads, head_dim]."""
    threads, heads, head_dim = outs.shape
    for h in range(heads):
        highest, total = _LOWEST, f32(0)
        for t in range(threads):
            highest = max(highest, peaks[t, h])
        for j in range(head_dim):
            mixed[h, j] = f32(0)
        for t in range(threads):
            factor = exp(peaks[t, h] - highest)
            total += factor * sums[t, h]
            for j in range(head_dim):
                mixed[h, j] += factor * outs[t, h, j]
        for j in range(head_dim):
            mixed[h, j] /= total


@intrinsic
def _asking_for(_context, array, index, begin, end):
    """Asks for ``array[index, begin:end]``."""
    need_contiguous(array)
    signature = types.void(array, index, begin, end)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0])
        rows, columns = (
            builder.extract_value(context.make_array(signature.args[0])(context, builder, values[0]).shape, axis)
            for axis in (1, 2)
        )
        row = builder.add(builder.mul(values[1], rows), values[2])
        here = builder.gep(start, [builder.mul(row, columns)])
        count = builder.mul(builder.sub(values[3], values[2]), columns)
        with cgutils.for_range_slice(builder, constant(0), count, constant(LINE // 4)) as (at, _):
            ask(builder, here, at)
        return context.get_dummy_value()

    return signature, generate


_ask_for: Any = _asking_for
