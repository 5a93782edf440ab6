"""The Triton programs of the GPU kernels; import this only where ``device.has_triton``: CPU machines have no Triton.

One token reads every weight once, so these programs do nothing but keep reads in flight: 16-byte loads along d, whole
tiles loaded before their first use, many programs a multiprocessor, weights marked as first to leave the cache and what
all programs share (x, the activations) as last. Sums are float32, in an order that the sizes alone decide, so equal
inputs give equal bits; there are no atomics.

Every program takes the active set from device memory: the first ``count[0]`` entries of ``chosen``. The grid is laid
out for all neurons and does not depend on them, so that a captured graph serves every active set.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from ..activations import GELU_ERF, GELU_TANH, SILU

_SILU = tl.constexpr(SILU)
_GELU_TANH = tl.constexpr(GELU_TANH)
_GELU_ERF = tl.constexpr(GELU_ERF)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation function of float32 ``x``; tanh by way of exp, which overflows to its right limits."""
    if KIND == _SILU:
        return x / (1.0 + tl.exp(-x))
    elif KIND == _GELU_TANH:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    elif KIND == _GELU_ERF:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return tl.maximum(x, 0.0)


@triton.jit
def active_rows(chosen, places, valid, ALL: tl.constexpr):
    """The neurons at ``places`` of the active set, int64; row numbers themselves where all neurons are active."""
    if ALL:
        return places.to(tl.int64)
    else:
        return tl.load(chosen + places, mask=valid, other=0).to(tl.int64)


@triton.jit
def _products(
    x, weight, rows, valid, D: tl.constexpr, BATCH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr
):
    """x [BATCH, D] times the given rows of weight [neurons, D], not yet summed over the last axis of COLUMNS.

    Summed by ``_summed`` only when the reads of gate and up are both under way: a sum waits for all threads.
    """
    batch = tl.arange(0, PADDED)
    columns = tl.arange(0, COLUMNS)
    if BATCH == 1:  # one row of x: two dimensions, whose layout lets every thread add up what it loads
        flat = tl.zeros([rows.shape[0], COLUMNS], tl.float32)
        for first in tl.static_range(0, D, COLUMNS):
            inside = first + columns < D
            piece = tl.load(x + first + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
            tile = tl.load(
                weight + rows[:, None] * D + (first + columns)[None, :],
                mask=valid[:, None] & inside[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            flat += tile.to(tl.float32) * piece[None, :]
        return flat
    else:
        deep = tl.zeros([PADDED, rows.shape[0], COLUMNS], tl.float32)
        for first in tl.static_range(0, D, COLUMNS):
            inside = first + columns < D
            piece = tl.load(
                x + batch[:, None] * D + (first + columns)[None, :],
                mask=(batch < BATCH)[:, None] & inside[None, :],
                other=0.0,
                eviction_policy="evict_last",
            ).to(tl.float32)
            tile = tl.load(
                weight + rows[:, None] * D + (first + columns)[None, :],
                mask=valid[:, None] & inside[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            deep += tile.to(tl.float32)[None, :, :] * piece[:, None, :]
        return deep


@triton.jit
def _summed(products, BATCH: tl.constexpr):
    """float32 [PADDED, rows]."""
    if BATCH == 1:
        return tl.sum(products, axis=1)[None, :]
    else:
        return tl.sum(products, axis=2)


@triton.jit
def fired(
    x,
    gate,
    up,
    gate_scale,
    up_scale,
    gate_bias,
    up_bias,
    rows,
    valid,
    D: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    GLU: tl.constexpr,
    SCALED: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The activations float32 [PADDED, rows] of the given neurons for x [BATCH, D]; see ``neurons_program``."""
    products = _products(x, up, rows, valid, D, BATCH, PADDED, COLUMNS)
    if GLU:
        opened = _summed(_products(x, gate, rows, valid, D, BATCH, PADDED, COLUMNS), BATCH)
    value = _summed(products, BATCH)
    if SCALED:
        value *= tl.load(up_scale + rows, mask=valid, other=0.0)[None, :]
        if GLU:
            opened *= tl.load(gate_scale + rows, mask=valid, other=0.0)[None, :]
    if UP_BIAS:
        value += tl.load(up_bias + rows, mask=valid, other=0.0).to(tl.float32)[None, :]
    if GLU:
        if GATE_BIAS:
            opened += tl.load(gate_bias + rows, mask=valid, other=0.0).to(tl.float32)[None, :]
        value = activate(opened, KIND) * value
    else:
        value = activate(value, KIND)
    return value


@triton.jit
def neurons_program(
    x,
    gate,
    up,
    gate_scale,
    up_scale,
    gate_bias,
    up_bias,
    chosen,
    count,
    activations,
    D: tl.constexpr,
    FF: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    GLU: tl.constexpr,
    SCALED: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Activations float32 [BATCH, FF] of the active neurons, place by place; what lies beyond ``count`` stays.

    ``SCALED``: weights are int8 codes, each row with a float32 scale.
    """
    active = FF if ALL else tl.load(count)
    batch = tl.arange(0, PADDED)
    for tile in range(tl.program_id(0), tl.cdiv(active, ROWS), tl.num_programs(0)):
        places = tile * ROWS + tl.arange(0, ROWS)
        valid = places < active
        rows = active_rows(chosen, places, valid, ALL)
        value = fired(
            *(x, gate, up, gate_scale, up_scale, gate_bias, up_bias, rows, valid, D, BATCH, PADDED),
            *(GLU, SCALED, GATE_BIAS, UP_BIAS, KIND, COLUMNS),
        )
        tl.store(
            activations + batch[:, None] * FF + places[None, :], value, mask=(batch < BATCH)[:, None] & valid[None, :]
        )


@triton.jit
def weighted_rows(
    activations,
    down,
    chosen,
    begin,
    end,
    columns,
    D: tl.constexpr,
    FF: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """float32 [PADDED, COLUMNS]: the rows of down at places ``begin`` to ``end`` times their activations, added up."""
    inside = columns < D
    batch = tl.arange(0, PADDED)
    total = tl.zeros([PADDED, COLUMNS], tl.float32)
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        places = first + tl.arange(0, ROWS)
        valid = places < end
        rows = active_rows(chosen, places, valid, ALL)
        tile = tl.load(
            down + rows[:, None] * D + columns[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_first",
        ).to(tl.float32)
        if BATCH == 1:
            weights = tl.load(activations + places, mask=valid, other=0.0, eviction_policy="evict_last")
            total += tl.sum(tile * weights[:, None], axis=0)[None, :]
        else:
            weights = tl.load(
                activations + batch[:, None] * FF + places[None, :],
                mask=(batch < BATCH)[:, None] & valid[None, :],
                other=0.0,
                eviction_policy="evict_last",
            )
            total += tl.sum(tile[None, :, :] * weights[:, :, None], axis=1)
    return total


@triton.jit
def down_program(
    activations,
    down,
    chosen,
    count,
    partial,
    D: tl.constexpr,
    FF: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """partial float32 [splits, BATCH, D]: each split sums its stretch of the active set, columns of one program."""
    active = FF if ALL else tl.load(count)
    split, splits = tl.program_id(0), tl.num_programs(0)
    begin, end = split * active // splits, (split + 1) * active // splits
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    batch = tl.arange(0, PADDED)
    total = weighted_rows(
        *(activations, down, chosen, begin, end, columns, D, FF, BATCH, PADDED, ALL, ROWS, COLUMNS, STAGES)
    )
    tl.store(
        partial + split * (BATCH * D) + batch[:, None] * D + columns[None, :],
        total,
        mask=(batch < BATCH)[:, None] & (columns < D)[None, :],
    )


@triton.jit
def sum_program(
    partial,
    scale,
    bias,
    out,
    D: tl.constexpr,
    BATCH: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out [BATCH, D] = the splits of ``partial`` added up, times the scale, plus the bias.

    One program a row of x and some columns.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < D
    row = tl.program_id(1)
    splits = tl.arange(0, SPLITS)  # a power of two, as Triton's ranges are
    parts = tl.load(
        partial + splits[:, None] * (BATCH * D) + row * D + columns[None, :], mask=inside[None, :], other=0.0
    )
    total = tl.sum(parts, axis=0)
    if SCALED:
        total *= tl.load(scale + columns, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + columns, total.to(out.dtype.element_ty), mask=inside)
