"""GGUF's blocks as values, and as int8 rows without a matrix of values between, as many threads as there are cores.

The ``gguf`` package unpacks with numpy, at a tenth of the speed: a file of 1.5 billion weights took half a minute. A
value is computed in the package's order, each product, sum and difference rounded, so both give the same bits.

Blocks of 32 weights have a scale in half precision, Q4_1 and Q5_1 a minimum too. K blocks have 256 weights, Q4_K and
Q5_K in 8 groups, Q6_K in 16, whose scales and minima are whole numbers times others of the block in half precision. A
fifth bit lies apart from the lower four. A loop that gets what it reads in one piece takes many weights at once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit, prange

from .partition import share
from .vectors import nearest

i32, f32 = np.int32, np.float32

# A value's roundings are part of it: nothing here may be reassociated or fused.
_EXACT: Any = {"nogil": True, "cache": True, "error_model": "numpy"}

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""The kinds of blocks that are known here; compiled code has each as its place in this list."""

_Q8_0, _Q4_0, _Q4_1, _Q5_0, _Q5_1, _Q4_K, _Q5_K, _Q6_K = range(len(KINDS))

_NO_NUMBER = i32(0x7F800000)  # the bits of infinity; those of what is no number are beyond


@njit(**_EXACT)
def _half(block, at, floats):
    return floats[np.int64(block[at]) | np.int64(block[at + 1]) << 8]


@njit(**_EXACT)
def _four_bits(codes, shift, scale, minimum, out):
    """``scale * code + minimum`` of half the bits of ``codes`` uint8 [n]."""
    shift = i32(shift)
    for k in range(out.shape[0]):
        out[k] = scale * f32((i32(codes[k]) >> shift) & i32(15)) + minimum


@njit(**_EXACT)
def _five_bits(codes, shift, fifths, place, scale, minimum, out):
    """As ``_four_bits``; bit ``place`` of each of ``fifths`` uint8 [n] is a code's fifth."""
    shift, place = i32(shift), i32(place)
    for k in range(out.shape[0]):
        code = (i32(codes[k]) >> shift) & i32(15)
        out[k] = scale * f32(code | ((i32(fifths[k]) >> place) & i32(1)) << i32(4)) + minimum


@njit(**_EXACT)
def _block_of_32(kind, block, floats, out):
    """The codes are its last bytes, before them those of fifth bits."""
    scale = _half(block, 0, floats)
    if kind == _Q8_0:
        codes = block[2:]
        for k in range(32):
            out[k] = scale * f32(i32(np.int8(codes[k])))
        return
    codes = block[block.shape[0] - 16 :]
    five = kind in (_Q5_0, _Q5_1)
    centre = i32(16) if five else i32(8)
    centred = kind in (_Q4_0, _Q5_0)
    minimum = f32(0) if centred else _half(block, 2, floats)
    fifths = i32(0)
    if five:
        at = block.shape[0] - 20
        for k in range(4):
            fifths |= i32(block[at + k]) << i32(8 * k)
    for turn in range(2):
        part = out[16 * turn : 16 * turn + 16]
        for k in range(16):
            code = (i32(codes[k]) >> i32(4 * turn)) & i32(15)
            code |= ((fifths >> i32(16 * turn + k)) & i32(1)) << i32(4)
            part[k] = scale * f32(code - centre) if centred else scale * f32(code) + minimum


@njit(**_EXACT)
def _six_bits(packed, group):
    """Scale and minimum, whole numbers, of one of 8 groups, from the 12 bytes of Q4_K and Q5_K."""
    if group < 4:
        return i32(packed[group] & 63), i32(packed[group + 4] & 63)
    low, high = packed[group + 4], i32(packed[group - 4]) >> 6
    return i32(low & 15) | high << 4, i32(low) >> 4 | (i32(packed[group]) >> 6) << 4


@njit(**_EXACT)
def _q4_or_q5_k(block, five, floats, out):
    unit, least = _half(block, 0, floats), _half(block, 2, floats)
    packed, fifths, codes = block[4:16], block[16:48], block[48 if five else 16 :]
    for group in range(8):
        whole_scale, whole_minimum = _six_bits(packed, group)
        scale, minimum = unit * f32(whole_scale), -(least * f32(whole_minimum))
        first, shift = 32 * (group // 2), 4 * (group % 2)
        part, target = codes[first : first + 32], out[32 * group : 32 * group + 32]
        if five:
            _five_bits(part, shift, fifths, group, scale, minimum, target)
        else:
            _four_bits(part, shift, scale, minimum, target)


@njit(**_EXACT)
def _q6_k(block, floats, out):
    unit = _half(block, 208, floats)
    for group in range(16):
        half, turn, part = group // 8, group // 2 % 4, 16 * (group % 2)
        scale = unit * f32(np.int8(block[192 + group]))
        first = 64 * half + 32 * (turn % 2) + part
        low = block[first : first + 16]
        first = 128 + 32 * half + part
        high = block[first : first + 16]
        target, shift, place = out[16 * group : 16 * group + 16], i32(4 * (turn // 2)), i32(2 * turn)
        for k in range(16):
            four = (i32(low[k]) >> shift) & i32(15)
            two = (i32(high[k]) >> place) & i32(3)
            target[k] = scale * f32((four | two << i32(4)) - i32(32))


@njit(**_EXACT)
def _unpack_row(kind, blocks, floats, out):
    """``out`` float32 [weights] of ``blocks`` uint8 [blocks, bytes]."""
    count = blocks.shape[0]
    size = out.shape[0] // count
    for b in range(count):
        block, target = blocks[b], out[b * size : (b + 1) * size]
        if kind == _Q6_K:
            _q6_k(block, floats, target)
        elif kind in (_Q4_K, _Q5_K):
            _q4_or_q5_k(block, kind == _Q5_K, floats, target)
        else:
            _block_of_32(kind, block, floats, target)


@njit(parallel=True, **_EXACT)
def _values(kind, blocks, floats, threads, out):
    for t in prange(threads):
        begin, end = share(out.shape[0], t, threads)
        for row in range(begin, end):
            _unpack_row(kind, blocks[row], floats, out[row])


@njit(**_EXACT)
def _round_row(values, codes):
    """Writes ``codes`` int8 as ``formats.INT8`` does and returns their scale, NaN where a value is no number."""
    bits = values.view(np.int32)
    most = np.zeros(1, np.int32)
    largest = i32(0)
    for k in range(bits.shape[0]):  # as whole numbers magnitudes have the same order, and what is no number counts
        largest = max(largest, bits[k] & i32(0x7FFFFFFF))
    if largest >= _NO_NUMBER:
        return f32(np.nan)
    most[0] = largest
    scale = most.view(np.float32)[0] / f32(127)
    divisor = scale if scale > f32(0) else f32(1)
    for k in range(codes.shape[0]):
        codes[k] = np.int8(i32(nearest(values[k] / divisor)))
    return scale


@njit(parallel=True, **_EXACT)
def _int8_rows(kind, blocks, floats, threads, codes, scales):
    rows, width = codes.shape
    for t in prange(threads):
        values = np.empty(width, np.float32)
        begin, end = share(rows, t, threads)
        for row in range(begin, end):
            _unpack_row(kind, blocks[row], floats, values)
            scales[row] = _round_row(values, codes[row])


@cache
def _floats() -> np.ndarray:
    """What every half stands for, float32 [65536]: not every processor can turn one into a float."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _blocks_of(data: np.ndarray, kind: str) -> tuple[np.ndarray, int]:
    """``data`` uint8 [rows, bytes] as [rows, blocks, bytes], and how many weights a row has."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = np.ascontiguousarray(data).reshape(len(data), -1, nbytes)
    return blocks, weights * blocks.shape[1]


def unpack(data: np.ndarray, kind: str, threads: int) -> np.ndarray:
    """Rows of blocks of a ``kind`` of ``KINDS``, uint8 [rows, bytes], as float32 [rows, weights]."""
    blocks, width = _blocks_of(data, kind)
    values = np.empty((len(data), width), np.float32)
    _values(KINDS.index(kind), blocks, _floats(), threads, values)
    return values


def round_to_int8(data: np.ndarray, kind: str, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of ``unpack`` in ``formats.INT8``: codes int8 [rows, weights] and scales float32 [rows].

    The scale of a row with a value that is no number, or infinite, is NaN, and its codes mean nothing.
    """
    blocks, width = _blocks_of(data, kind)
    codes, scales = np.empty((len(data), width), np.int8), np.empty(len(data), np.float32)
    _int8_rows(KINDS.index(kind), blocks, _floats(), threads, codes, scales)
    return codes, scales


def q4_k_groups(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of Q4_K blocks, uint8 [rows, bytes], as ``q4.of_groups`` takes them: nibbles [rows, groups, 16], and scales
    and minima in half precision, to which the products that they are have to be rounded: by 2^-11 of each at most.
    """
    from gguf.quants import Q4_K

    rows, blocks = len(data), np.ascontiguousarray(data).reshape(-1, 144)
    codes = blocks[:, 16:].reshape(-1, 4, 1, 2, 16)  # pair, turn, half of a group
    groups = np.concatenate([codes & 15, codes >> 4], axis=2)
    nibbles = groups[:, :, :, 0] | groups[:, :, :, 1] << 4
    units = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    whole = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    scales, minima = (
        (units[:, k : k + 1] * each.astype(np.float32)).astype(np.float16).reshape(rows, -1)
        for k, each in enumerate(whole)
    )
    return nibbles.reshape(rows, -1, 16), scales, -minima
