"""The Triton programs for NF4 weights, all neurons or an active set; import this only where ``device.has_triton``."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from .nf4_reading import eight_levels, lane_level, nf4_times, read_eighths, read_scales, read_words
from .programs import fired, let_next_begin, neurons_at, wait_for_previous


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
    SHUFFLED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """As ``neurons_program``."""
    let_next_begin(OVERLAP)
    active = FF if ALL else tl.load(count)
    levels = lane_level(table, SHUFFLED)
    blocks = tl.arange(0, BLOCKS)
    step = tl.num_programs(0) * ROWS
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = neurons_at(chosen, places, active, ALL)
    up_words = read_words(up, rows, places < active, blocks, D)
    up_scales = read_scales(up_absmax, rows, places < active, blocks, D)
    gate_words, gate_scales = up_words, up_scales
    if GLU:
        gate_words = read_words(gate, rows, places < active, blocks, D)
        gate_scales = read_scales(gate_absmax, rows, places < active, blocks, D)
    next_rows = neurons_at(chosen, places + step, active, ALL)
    wait_for_previous(OVERLAP)
    inputs = read_eighths(x, 0, D, BLOCKS)
    for _ in range(tl.program_id(0) * ROWS, active, step):
        after = places + step
        next_up = read_words(up, next_rows, after < active, blocks, D)
        next_up_scales = read_scales(up_absmax, next_rows, after < active, blocks, D)
        next_gate, next_gate_scales = next_up, next_up_scales
        if GLU:
            next_gate = read_words(gate, next_rows, after < active, blocks, D)
            next_gate_scales = read_scales(gate_absmax, next_rows, after < active, blocks, D)
        rows_after = neurons_at(chosen, after + step, active, ALL)
        valid = places < active
        value = tl.sum(nf4_times(up_words, up_scales, inputs, levels, SHUFFLED), axis=1)
        opened = value
        if GLU:
            opened = tl.sum(nf4_times(gate_words, gate_scales, inputs, levels, SHUFFLED), axis=1)
        value = fired(
            *(opened, value, None, None, gate_bias, up_bias, rows, valid), *(GLU, False, GATE_BIAS, UP_BIAS, KIND)
        )
        tl.store(activations + places, value, mask=valid)
        places, rows, next_rows = after, next_rows, rows_after
        up_words, up_scales, gate_words, gate_scales = next_up, next_up_scales, next_gate, next_gate_scales


@triton.jit
def nf4_weighted_rows(
    activations,
    down,
    absmax,
    levels,
    chosen,
    begin,
    end,
    blocks,
    D: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHUFFLED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """float32 [64 * BLOCKS]: the rows of down at places ``begin`` to ``end`` times their activations, added up.

    Waits for the previous launch between its first reads and its first sum.
    """
    places = begin + tl.arange(0, ROWS)
    rows = neurons_at(chosen, places, end, ALL)
    words = read_words(down, rows, places < end, blocks, D)
    scales = read_scales(absmax, rows, places < end, blocks, D)
    next_rows = neurons_at(chosen, places + ROWS, end, ALL)
    wait_for_previous(OVERLAP)
    t0 = tl.zeros([ROWS, BLOCKS, 8], tl.float32)  # summed over rows at the end: warps may lie along them
    t1, t2, t3, t4, t5, t6, t7 = t0, t0, t0, t0, t0, t0, t0
    for _ in range(begin, end, ROWS):
        after = places + ROWS
        next_words = read_words(down, next_rows, after < end, blocks, D)
        next_scales = read_scales(absmax, next_rows, after < end, blocks, D)
        next_rows = neurons_at(chosen, after + ROWS, end, ALL)
        weights = tl.load(activations + places, mask=places < end, other=0.0, eviction_policy="evict_last")
        factor = (scales * weights[:, None])[:, :, None]
        w = eight_levels(words, levels, SHUFFLED)
        t0 += w[0] * factor
        t1 += w[1] * factor
        t2 += w[2] * factor
        t3 += w[3] * factor
        t4 += w[4] * factor
        t5 += w[5] * factor
        t6 += w[6] * factor
        t7 += w[7] * factor
        places, words, scales = after, next_words, next_scales
    s04 = tl.join(tl.sum(t0, axis=0), tl.sum(t4, axis=0))
    s15 = tl.join(tl.sum(t1, axis=0), tl.sum(t5, axis=0))
    s26 = tl.join(tl.sum(t2, axis=0), tl.sum(t6, axis=0))
    s37 = tl.join(tl.sum(t3, axis=0), tl.sum(t7, axis=0))
    return tl.reshape(tl.join(tl.join(s04, s26), tl.join(s15, s37)), [BLOCKS * 64])


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
    SHUFFLED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """As ``down_program``."""
    let_next_begin(OVERLAP)
    active = FF if ALL else tl.load(count)
    split, splits = tl.program_id(0), tl.num_programs(0)
    begin, end = split * active // splits, (split + 1) * active // splits
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    total = nf4_weighted_rows(
        *(activations, down, absmax, lane_level(table, SHUFFLED), chosen, begin, end, blocks),
        *(D, ALL, ROWS, BLOCKS, SHUFFLED, OVERLAP),
    )
    columns = tl.program_id(1) * (BLOCKS * 64) + tl.arange(0, BLOCKS * 64)
    tl.store(partial + split * D + columns, total, mask=columns < D)


@triton.jit
def nf4_linear_program(
    x,
    codes,
    absmax,
    table,
    bias,
    out,
    OUTPUTS: tl.constexpr,
    D: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHUFFLED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """As ``linear_program``, ``BLOCKS`` of a row at a time."""
    let_next_begin(OVERLAP)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = rows < OUTPUTS
    blocks = tl.arange(0, BLOCKS)
    words = read_words(codes, rows, valid, blocks, D)
    scales = read_scales(absmax, rows, valid, blocks, D)
    levels = lane_level(table, SHUFFLED)
    wait_for_previous(OVERLAP)
    total = tl.zeros([ROWS, BLOCKS], tl.float32)
    for first in range(0, D // 64, BLOCKS):
        blocks += BLOCKS
        next_words = read_words(codes, rows, valid, blocks, D)
        next_scales = read_scales(absmax, rows, valid, blocks, D)
        total += nf4_times(words, scales, read_eighths(x, first, D, BLOCKS), levels, SHUFFLED)
        words, scales = next_words, next_scales
    value = tl.sum(total, axis=1)
    if BIAS:
        value += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=valid)
