"""A matrix into the low-bit format (``kernels.q4``), by rows and by columns, as many threads as there are cores.

The matrix is ``numbers`` [rows, columns], float32 or int8, times ``factors`` float32 [rows]: that of an int8 matrix is
never there in floats.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..q4_sizes import GROUP, TILE
from .partition import share
from .q4_fit import LANES, fit
from .q4_tiles import parts_of

_HALF = GROUP // 2


@njit(parallel=True, nogil=True, cache=True)
def encode_rows(numbers, factors, threads, records):
    """Writes ``records`` uint8 [rows, records, 40]."""
    rows, width = numbers.shape
    for t in prange(threads):
        weights, codes, halves = _room()
        first, last = share((rows + LANES - 1) // LANES, t, threads)
        for batch in range(first, last):
            begin = batch * LANES
            count = min(LANES, rows - begin)
            for group in range(2 * records.shape[1]):
                _gather(numbers, factors, begin, count, group * GROUP, width, weights)
                fit(weights, codes, halves)
                half = group % 2
                for lane in range(count):
                    record = records[begin + lane, group // 2]
                    for k in range(_HALF):
                        record[half * _HALF + k] = codes[k, lane] | codes[k + _HALF, lane] << 4
                    _put_half(halves[0, lane], record, GROUP + 2 * half)
                    _put_half(halves[1, lane], record, GROUP + 4 + 2 * half)


@njit(parallel=True, nogil=True, cache=True)
def encode_columns(numbers, factors, threads, tiles):
    """Writes ``tiles`` uint8 [groups of 32 neurons, 640 for every 32 outputs]; rows of ``numbers`` are neurons."""
    neurons, width = numbers.shape
    for t in prange(threads):
        weights, codes, halves = _room()
        first, last = share(tiles.shape[0], t, threads)
        for tile in range(first, last):
            tiles[tile] = 0
            all_halves, all_codes = parts_of(tiles[tile])
            for chunk in range(all_codes.shape[0]):
                out, out_halves = all_codes[chunk], all_halves[chunk]
                for begin in range(tile * TILE, min((tile + 1) * TILE, neurons), LANES):
                    count = min(LANES, neurons - begin)
                    _gather(numbers, factors, begin, count, chunk * GROUP, width, weights)
                    fit(weights, codes, halves)
                    for lane in range(count):
                        neuron = begin + lane - tile * TILE
                        at = neuron // 2 * GROUP + neuron % 2
                        for k in range(_HALF):
                            out[at + 2 * k] = codes[k, lane] | codes[k + _HALF, lane] << 4
                        _put_half(halves[0, lane], out_halves, 2 * neuron)
                        _put_half(halves[1, lane], out_halves, 2 * (TILE + neuron))


@njit(nogil=True, cache=True)
def _room():
    shape = GROUP, LANES
    return np.zeros(shape, np.float32), np.empty(shape, np.uint8), np.empty((2, LANES), np.uint16)


@njit(nogil=True, cache=True)
def _gather(numbers, factors, begin, count, first, width, weights):
    """The columns from ``first`` on of ``count`` rows, a group each, into ``weights`` float32 [32, 16].

    Beyond the ``width`` a group begun is filled up with its last weight, others with zeros: what stands for no weight
    then widens no range. What it is multiplied with is zero.
    """
    whole = min(GROUP, max(width - first, 0))
    for lane in range(count):
        row, factor = numbers[begin + lane], factors[begin + lane]
        for k in range(whole):
            weights[k, lane] = np.float32(row[first + k]) * factor
        filling = weights[whole - 1, lane] if whole > 0 else np.float32(0)
        for k in range(whole, GROUP):
            weights[k, lane] = filling


@njit(nogil=True, cache=True)
def _put_half(bits, target, at):
    target[at] = np.uint8(bits & 255)
    target[at + 1] = np.uint8(bits >> 8)
