"""The Triton programs for NF4 weights as bitsandbytes packs them; import this only where ``device.has_triton``.

A byte holds two weights, the first in its high half; 64 weights share a float32 ``absmax``. Four bytes are read as one
word of eight weights, in tiles [rows, blocks, 8 words], so that a thread reads 16 bytes at once. Decoding is arithmetic
and what limits these programs, so it must take few instructions: on a card every lane of a warp holds one of the
sixteen levels, and a shuffle, which looks at the lowest four bits of its index, gives a weight's in one instruction
after one shift (``SHUFFLED``). Triton's interpreter looks the levels up in memory.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from .programs import fired, let_next_begin, neurons_at, wait_for_previous

_LANE_LEVEL = tl.constexpr(
    """{
    .reg .u32 lane;
    .reg .u64 address;
    mov.u32 lane, %laneid;
    and.b32 lane, lane, 15;
    mul.wide.u32 address, lane, 4;
    add.u64 address, address, $1;
    ld.global.nc.f32 $0, [address];
    }"""
)
# A word's weights in their order: the high half of byte 0, its low half, the high half of byte 1, ... 0x101f makes a
# shuffle take lane (index mod 16) of the asking lane's own half of the warp.
_EIGHT_LEVELS = tl.constexpr(
    """{
    .reg .b32 index;
    shr.u32 index, $8, 4;
    shfl.sync.idx.b32 $0, $9, index, 0x101f, 0xffffffff;
    shfl.sync.idx.b32 $1, $9, $8, 0x101f, 0xffffffff;
    shr.u32 index, $8, 12;
    shfl.sync.idx.b32 $2, $9, index, 0x101f, 0xffffffff;
    shr.u32 index, $8, 8;
    shfl.sync.idx.b32 $3, $9, index, 0x101f, 0xffffffff;
    shr.u32 index, $8, 20;
    shfl.sync.idx.b32 $4, $9, index, 0x101f, 0xffffffff;
    shr.u32 index, $8, 16;
    shfl.sync.idx.b32 $5, $9, index, 0x101f, 0xffffffff;
    shr.u32 index, $8, 28;
    shfl.sync.idx.b32 $6, $9, index, 0x101f, 0xffffffff;
    shr.u32 index, $8, 24;
    shfl.sync.idx.b32 $7, $9, index, 0x101f, 0xffffffff;
    }"""
)
_EIGHT_FLOATS = tl.constexpr("=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,r,f")


@triton.jit
def lane_level(table, SHUFFLED: tl.constexpr):
    """What ``eight_levels`` takes: the level that this lane holds, or the table."""
    if SHUFFLED:
        return tl.inline_asm_elementwise(_LANE_LEVEL, "=f,l", [table], dtype=tl.float32, is_pure=False, pack=1)
    else:
        return table


@triton.jit
def eight_levels(words, levels, SHUFFLED: tl.constexpr):
    """The eight float32 levels, before scaling, of each word, in the order of the weights."""
    if SHUFFLED:
        return tl.inline_asm_elementwise(
            _EIGHT_LEVELS,
            _EIGHT_FLOATS,
            [words, levels],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        return (
            tl.load(levels + ((words >> 4) & 15)),
            tl.load(levels + (words & 15)),
            tl.load(levels + ((words >> 12) & 15)),
            tl.load(levels + ((words >> 8) & 15)),
            tl.load(levels + ((words >> 20) & 15)),
            tl.load(levels + ((words >> 16) & 15)),
            tl.load(levels + ((words >> 28) & 15)),
            tl.load(levels + ((words >> 24) & 15)),
        )


@triton.jit
def read_words(codes, rows, valid, blocks, D: tl.constexpr):
    """int32 [rows, blocks, 8]: the given blocks of the given rows of codes int32 [neurons, D / 8]."""
    word = tl.arange(0, 8)
    return tl.load(
        codes + rows[:, None, None] * (D // 8) + blocks[None, :, None] * 8 + word[None, None, :],
        mask=(valid[:, None] & (blocks < D // 64)[None, :])[:, :, None],
        other=0,
        eviction_policy="evict_first",
    )


@triton.jit
def read_scales(absmax, rows, valid, blocks, D: tl.constexpr):
    """float32 [rows, blocks]."""
    inside = valid[:, None] & (blocks < D // 64)[None, :]
    return tl.load(absmax + rows[:, None] * (D // 64) + blocks[None, :], mask=inside, other=0.0)


@triton.jit
def read_eighths(x, first, D: tl.constexpr, BLOCKS: tl.constexpr):
    """x [D] from block ``first`` on as eight float32 [BLOCKS, 8 words]: what a word's first weights meet, its second...

    Zero beyond D.
    """
    index = first * 64 + tl.arange(0, BLOCKS * 64)
    flat = tl.load(x + index, mask=index < D, other=0.0, eviction_policy="evict_last").to(tl.float32)
    even, odd = tl.split(tl.reshape(flat, [BLOCKS, 8, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def nf4_times(words, scales, x, levels, SHUFFLED: tl.constexpr):
    """float32 [rows, blocks], to be summed: NF4 rows of ``read_words`` and ``read_scales`` times ``read_eighths``."""
    w = eight_levels(words, levels, SHUFFLED)
    total = w[0] * x[0][None, :, :]
    total += w[1] * x[1][None, :, :]
    total += w[2] * x[2][None, :, :]
    total += w[3] * x[3][None, :, :]
    total += w[4] * x[4][None, :, :]
    total += w[5] * x[5][None, :, :]
    total += w[6] * x[6][None, :, :]
    total += w[7] * x[7][None, :, :]
    return tl.sum(total, axis=2) * scales


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
