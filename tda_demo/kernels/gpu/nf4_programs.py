"""The Triton programs for NF4 weights as bitsandbytes packs them; import this only where ``device.has_triton``.

A byte holds two weights, the first in its high half; 64 weights share a float32 ``absmax``. Tiles are [rows, blocks,
32 bytes], so that a thread reads 16 bytes at once and a block's scale is read and multiplied once. The sixteen code
values are looked up in a table that stays in the first-level cache, or in a copy in shared memory. Each row of a batch
is a program of its own, which reads the weights again.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from .programs import activate, active_rows


@triton.jit
def _unpacked(codes, table, HELD: tl.constexpr):
    """The two float32 code values, before scaling, of each byte.

    ``HELD``: looked up in a copy of the table in shared memory, which takes fewer instructions and more registers.
    """
    if HELD:
        values = tl.load(table + tl.arange(0, 16))
        flat = tl.ravel(codes).to(tl.int32)
        high, low = tl.gather(values, flat >> 4, 0), tl.gather(values, flat & 15, 0)
        return tl.reshape(high, codes.shape), tl.reshape(low, codes.shape)
    else:
        return tl.load(table + (codes >> 4)), tl.load(table + (codes & 15))


@triton.jit
def _products(x, codes, absmax, table, rows, valid, D: tl.constexpr, BLOCKS: tl.constexpr, HELD: tl.constexpr):
    """float32 [rows, BLOCKS], to be summed over its last axis: x [D] times the given NF4 rows."""
    total = tl.zeros([rows.shape[0], BLOCKS], tl.float32)
    byte = tl.arange(0, 32)
    half = tl.arange(0, 2)
    for first in tl.static_range(0, D // 64, BLOCKS):
        blocks = first + tl.arange(0, BLOCKS)
        inside = blocks < D // 64
        pairs = tl.load(
            x + blocks[:, None, None] * 64 + byte[None, :, None] * 2 + half[None, None, :],
            mask=inside[:, None, None],
            other=0.0,
            eviction_policy="evict_last",
        ).to(tl.float32)
        even, odd = tl.split(pairs)
        some = valid[:, None] & inside[None, :]
        packed = tl.load(
            codes + rows[:, None, None] * (D // 2) + blocks[None, :, None] * 32 + byte[None, None, :],
            mask=some[:, :, None],
            other=0,
            eviction_policy="evict_first",
        )
        scale = tl.load(absmax + rows[:, None] * (D // 64) + blocks[None, :], mask=some, other=0.0)
        high, low = _unpacked(packed, table, HELD)
        total += tl.sum(high * even[None, :, :] + low * odd[None, :, :], axis=2) * scale
    return total


@triton.jit
def nf4_fired(
    x,
    gate,
    up,
    gate_absmax,
    up_absmax,
    table,
    gate_bias,
    up_bias,
    rows,
    valid,
    D: tl.constexpr,
    GLU: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    BLOCKS: tl.constexpr,
    HELD: tl.constexpr,
):
    """The activations float32 [rows] of the given neurons for x [D]."""
    products = _products(x, up, up_absmax, table, rows, valid, D, BLOCKS, HELD)
    if GLU:
        opened = tl.sum(_products(x, gate, gate_absmax, table, rows, valid, D, BLOCKS, HELD), axis=1)
    value = tl.sum(products, axis=1)
    if UP_BIAS:
        value += tl.load(up_bias + rows, mask=valid, other=0.0).to(tl.float32)
    if GLU:
        if GATE_BIAS:
            opened += tl.load(gate_bias + rows, mask=valid, other=0.0).to(tl.float32)
        value = activate(opened, KIND) * value
    else:
        value = activate(value, KIND)
    return value


@triton.jit
def nf4_neurons_program(
    x,
    gate,
    up,
    gate_absmax,
    up_absmax,
    table,
    gate_bias,
    up_bias,
    chosen,
    count,
    activations,
    D: tl.constexpr,
    FF: tl.constexpr,
    GLU: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HELD: tl.constexpr,
):
    """As ``neurons_program``, of row ``program_id(1)`` of x."""
    active = FF if ALL else tl.load(count)
    row = tl.program_id(1)
    for tile in range(tl.program_id(0), tl.cdiv(active, ROWS), tl.num_programs(0)):
        places = tile * ROWS + tl.arange(0, ROWS)
        valid = places < active
        rows = active_rows(chosen, places, valid, ALL)
        value = nf4_fired(
            *(x + row * D, gate, up, gate_absmax, up_absmax, table, gate_bias, up_bias, rows, valid, D),
            *(GLU, GATE_BIAS, UP_BIAS, KIND, BLOCKS, HELD),
        )
        tl.store(activations + row * FF + places, value, mask=valid)


@triton.jit
def nf4_weighted_rows(
    activations,
    down,
    absmax,
    table,
    chosen,
    begin,
    end,
    blocks,
    D: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HELD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """float32 [BLOCKS, 32, 2], outputs in their order: as ``weighted_rows``, of one row of activations."""
    inside = blocks < D // 64
    byte = tl.arange(0, 32)
    high_total = tl.zeros([ROWS, BLOCKS, 32], tl.float32)  # summed over rows at the end: warps lie along them
    low_total = tl.zeros([ROWS, BLOCKS, 32], tl.float32)
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        places = first + tl.arange(0, ROWS)
        valid = places < end
        rows = active_rows(chosen, places, valid, ALL)
        some = valid[:, None] & inside[None, :]
        packed = tl.load(
            down + rows[:, None, None] * (D // 2) + blocks[None, :, None] * 32 + byte[None, None, :],
            mask=some[:, :, None],
            other=0,
            eviction_policy="evict_first",
        )
        scale = tl.load(absmax + rows[:, None] * (D // 64) + blocks[None, :], mask=some, other=0.0)
        weights = tl.load(activations + places, mask=valid, other=0.0, eviction_policy="evict_last")
        high, low = _unpacked(packed, table, HELD)
        factor = (scale * weights[:, None])[:, :, None]
        high_total += high * factor
        low_total += low * factor
    return tl.join(tl.sum(high_total, axis=0), tl.sum(low_total, axis=0))


@triton.jit
def nf4_down_program(
    activations,
    down,
    absmax,
    table,
    chosen,
    count,
    partial,
    D: tl.constexpr,
    FF: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HELD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As ``down_program``, of row ``program_id(2)`` of the activations; ``partial`` is [splits, batch, D]."""
    active = FF if ALL else tl.load(count)
    split, splits = tl.program_id(0), tl.num_programs(0)
    row, batch = tl.program_id(2), tl.num_programs(2)
    begin, end = split * active // splits, (split + 1) * active // splits
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    pairs = nf4_weighted_rows(
        *(activations + row * FF, down, absmax, table, chosen, begin, end, blocks, D, ALL, ROWS, BLOCKS, HELD, STAGES)
    )
    byte = tl.arange(0, 32)
    half = tl.arange(0, 2)
    tl.store(
        partial
        + (split * batch + row) * D
        + blocks[:, None, None] * 64
        + byte[None, :, None] * 2
        + half[None, None, :],
        pairs,
        mask=(blocks < D // 64)[:, None, None],
    )
