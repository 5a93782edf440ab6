"""The values of GGUF's commonest blocks, as many threads as there are cores.

The ``gguf`` package unpacks all kinds, with numpy, at a tenth of the speed: a file of 1.5 billion weights took half a
minute. Every value is computed in the package's order, product and difference rounded each, so both give the same bits.

Q8_0 has a scale in half precision every 32 weights. A K block has 256, Q4_K and Q5_K in 8 groups, Q6_K in 16, whose
scales and minima are whole numbers times others of the block in half precision. What a loop reads is given to it apart
and in one piece, each index a loop's own: a compiler then takes many weights at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from .partition import share

i32 = np.int32  # what a processor turns many of into floats at once; numba's own choice has 64 bits

_EXACT: Any = {"parallel": True, "nogil": True, "cache": True}


@njit(**_EXACT)
def _q4_k(codes, scales, minima, threads, out):
    """``codes`` uint8 [blocks, 4, 32], two groups each; ``scales`` and ``minima`` float32 [blocks, 8]."""
    count = codes.shape[0]
    for t in prange(threads):
        begin, end = share(count, t, threads)
        for b in range(begin, end):
            for pair in range(4):
                for turn in range(2):
                    scale, minimum, shift = scales[b, pair, turn], minima[b, pair, turn], i32(4 * turn)
                    for k in range(32):
                        code = (i32(codes[b, pair, k]) >> shift) & i32(15)
                        out[b, pair, turn, k] = scale * np.float32(code) - minimum


@njit(**_EXACT)
def _q5_k(codes, fifths, scales, minima, threads, out):
    """As ``_q4_k``; ``fifths`` uint8 [blocks, 32] have a bit for each group."""
    count = codes.shape[0]
    for t in prange(threads):
        begin, end = share(count, t, threads)
        for b in range(begin, end):
            for pair in range(4):
                for turn in range(2):
                    scale, minimum, shift = scales[b, pair, turn], minima[b, pair, turn], i32(4 * turn)
                    place = i32(2 * pair + turn)
                    for k in range(32):
                        code = (i32(codes[b, pair, k]) >> shift) & i32(15)
                        fifth = (i32(fifths[b, k]) >> place) & i32(1)
                        out[b, pair, turn, k] = scale * np.float32(code | (fifth << i32(4))) - minimum


@njit(**_EXACT)
def _q6_k(low, high, scales, threads, out):
    """``low`` uint8 [blocks, 2 halves, 2, 2 groups, 16] and ``high`` [blocks, 2, 2, 16], four groups a byte; ``scales``
    float32 [blocks, 2, 4, 2].
    """
    count = low.shape[0]
    for t in prange(threads):
        begin, end = share(count, t, threads)
        for b in range(begin, end):
            for half in range(2):
                for turn in range(4):
                    shift, place = i32(4 * (turn // 2)), i32(2 * turn)
                    for part in range(2):
                        scale = scales[b, half, turn, part]
                        for k in range(16):
                            four = (i32(low[b, half, turn % 2, part, k]) >> shift) & i32(15)
                            two = (i32(high[b, half, part, k]) >> place) & i32(3)
                            out[b, half, turn, part, k] = scale * np.float32((four | (two << i32(4))) - i32(32))


@njit(**_EXACT)
def _q8_0(codes, scales, threads, out):
    """``codes`` int8 [blocks, 32], ``scales`` float32 [blocks]."""
    count = codes.shape[0]
    for t in prange(threads):
        begin, end = share(count, t, threads)
        for b in range(begin, end):
            for k in range(32):
                out[b, k] = scales[b] * np.float32(codes[b, k])


def _halves(blocks: np.ndarray, first: int, count: int) -> np.ndarray:
    """Half-precision numbers of every block as float32 [blocks, count]."""
    return _part(blocks, first, 2 * count).view(np.float16).astype(np.float32)


def _part(blocks: np.ndarray, first: int, count: int, *shape: int) -> np.ndarray:
    """Bytes of every block in one piece, uint8 [blocks, *shape]."""
    return np.ascontiguousarray(blocks[:, first : first + count]).reshape(len(blocks), *(shape or (count,)))


def q4_k_groups(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of Q4_K blocks, uint8 [rows, bytes], as ``q4.of_groups`` takes them: nibbles [rows, groups, 16], and scales
    and minima in half precision, to which the products that they are have to be rounded: by 2^-11 of each at most.
    """
    rows, blocks = len(data), np.ascontiguousarray(data).reshape(-1, 144)
    codes = _part(blocks, 16, 128, 4, 1, 2, 16)  # pair, turn, half of a group
    groups = np.concatenate([codes & 15, codes >> 4], axis=2)
    nibbles = groups[:, :, :, 0] | groups[:, :, :, 1] << 4
    scales, minima = (each.astype(np.float16).reshape(rows, -1) for each in _scales_and_minima(blocks))
    return nibbles.reshape(rows, -1, 16), scales, -minima


def _scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of Q4_K and Q5_K, float32 [blocks, 4, 2]."""
    from gguf.quants import Q4_K

    units = _halves(blocks, 0, 2)
    whole = Q4_K.get_scale_min(_part(blocks, 4, 12))
    scales, minima = (units[:, k : k + 1] * each.astype(np.float32) for k, each in enumerate(whole))
    return scales.reshape(-1, 4, 2), minima.reshape(-1, 4, 2)


def _unpack_q4_k(blocks: np.ndarray, threads: int, out: np.ndarray) -> None:
    _q4_k(_part(blocks, 16, 128, 4, 32), *_scales_and_minima(blocks), threads, out.reshape(-1, 4, 2, 32))


def _unpack_q5_k(blocks: np.ndarray, threads: int, out: np.ndarray) -> None:
    codes, fifths = _part(blocks, 48, 128, 4, 32), _part(blocks, 16, 32)
    _q5_k(codes, fifths, *_scales_and_minima(blocks), threads, out.reshape(-1, 4, 2, 32))


def _unpack_q6_k(blocks: np.ndarray, threads: int, out: np.ndarray) -> None:
    low, high = _part(blocks, 0, 128, 2, 2, 2, 16), _part(blocks, 128, 64, 2, 2, 16)
    scales = _halves(blocks, 208, 1) * _part(blocks, 192, 16).view(np.int8).astype(np.float32)
    _q6_k(low, high, scales.reshape(-1, 2, 4, 2), threads, out.reshape(-1, 2, 4, 2, 16))


def _unpack_q8_0(blocks: np.ndarray, threads: int, out: np.ndarray) -> None:
    _q8_0(_part(blocks, 2, 32).view(np.int8), _halves(blocks, 0, 1)[:, 0], threads, out)


@dataclass(frozen=True)
class BlockKind:
    """``nbytes`` hold ``weights``; ``unpack(blocks, threads, out)`` gives the values ``out`` float32 [blocks, weights]
    of ``blocks`` uint8 [blocks, nbytes].
    """

    weights: int
    nbytes: int
    unpack: Callable[[np.ndarray, int, np.ndarray], None]


KINDS: dict[str, BlockKind] = {
    "Q4_K": BlockKind(256, 144, _unpack_q4_k),
    "Q5_K": BlockKind(256, 176, _unpack_q5_k),
    "Q6_K": BlockKind(256, 210, _unpack_q6_k),
    "Q8_0": BlockKind(32, 34, _unpack_q8_0),
}


def unpack(data: np.ndarray, kind: str, threads: int) -> np.ndarray:
    """Rows of blocks of a ``kind`` of ``KINDS``, uint8 [rows, bytes], as float32 [rows, weights]."""
    form = KINDS[kind]
    blocks = np.ascontiguousarray(data).reshape(-1, form.nbytes)
    values = np.empty((len(blocks), form.weights), np.float32)
    form.unpack(blocks, threads, values)
    return values.reshape(len(data), -1)
