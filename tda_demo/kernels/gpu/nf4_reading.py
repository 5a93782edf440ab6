"""NF4 rows in Triton programs: read as bitsandbytes packs them, decoded, and multiplied with x.

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
