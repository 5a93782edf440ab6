"""The values that the low-bit format (``kernels.q4``) stands for, as many threads as there are cores."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..q4_sizes import GROUP, RECORD, TILE
from .partition import share
from .q4_rows import from_half
from .q4_tiles import parts_of

_HALF = GROUP // 2


@njit(parallel=True, nogil=True, cache=True)
def decode(records, threads, out):
    """``out`` float32 [rows, 64 * records] = the values of ``records`` uint8 [rows, records, 40].

    A product and a sum each, rounded each, as anybody else would compute them.
    """
    rows = records.shape[0]
    for t in prange(threads):
        begin, end = share(rows, t, threads)
        for i in range(begin, end):
            for r in range(records.shape[1]):
                record = records[i, r]
                for group in range(2):
                    place = GROUP + 2 * group
                    scale = from_half(record[place], record[place + 1])
                    minimum = from_half(record[place + 4], record[place + 5])
                    first = r * RECORD + group * GROUP
                    for k in range(_HALF):
                        both = record[group * _HALF + k]
                        out[i, first + k] = np.float32(both & 15) * scale + minimum
                        out[i, first + _HALF + k] = np.float32(both >> 4) * scale + minimum


@njit(parallel=True, nogil=True, cache=True)
def decode_tiles(tiles, threads, out):
    """``out`` float32 [32 * groups of neurons, 32 * groups of outputs] = the values of ``tiles`` uint8 [.., 640 ..].

    As ``decode`` computes them.
    """
    for t in prange(threads):
        begin, end = share(tiles.shape[0], t, threads)
        for i in range(begin, end):
            all_halves, all_codes = parts_of(tiles[i])
            for chunk in range(all_codes.shape[0]):
                halves, codes, first = all_halves[chunk], all_codes[chunk], chunk * GROUP
                for neuron in range(TILE):
                    place = 2 * neuron
                    scale = from_half(halves[place], halves[place + 1])
                    minimum = from_half(halves[place + 2 * TILE], halves[place + 2 * TILE + 1])
                    at = neuron // 2 * GROUP + neuron % 2
                    for k in range(_HALF):
                        both = codes[at + 2 * k]
                        out[i * TILE + neuron, first + k] = np.float32(both & 15) * scale + minimum
                        out[i * TILE + neuron, first + _HALF + k] = np.float32(both >> 4) * scale + minimum
