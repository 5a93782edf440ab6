"""Tiles of the low-bit copy's columns (``kernels.q4``): taken apart in compiled code, and copies of some neurons."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..q4_sizes import CODES_BYTES, GROUP, HALVES_BYTES, TILE, TILE_BYTES
from .partition import share

_HALF = GROUP // 2


@njit(inline="always")
def chunks_of(tiles):
    """How many groups of 32 columns ``tiles`` [tiles, size] have."""
    return tiles.shape[1] * tiles.itemsize // TILE_BYTES


@njit(inline="always")
def parts_of(tile):
    """Scales and minima of a tile, [chunks, 128 bytes], and its codes, [chunks, 512 bytes]: views, of uint8 or more."""
    size = tile.itemsize
    chunks = tile.shape[0] * size // TILE_BYTES
    split = chunks * (HALVES_BYTES // size)
    halves, codes = tile[:split], tile[split:]
    return halves.reshape(chunks, HALVES_BYTES // size), codes.reshape(chunks, CODES_BYTES // size)


@njit(parallel=True, nogil=True, cache=True)
def gather_columns(tiles, chosen, threads, out):
    """Copies of the columns of the neurons ``chosen`` int64 [k] into new tiles ``out``, filled up with zeros.

    Both are uint16 [tiles, 320 * chunks]: two bytes of codes belong to two neurons that lie side by side.
    """
    count = len(chosen)
    for t in prange(threads):
        begin, end = share(len(out), t, threads)
        for tile in range(begin, end):
            first = tile * TILE
            if first + TILE > count:
                out[tile] = 0
            for n in range(first, min(first + TILE, count)):
                _copy_column(tiles[chosen[n] // TILE], chosen[n] % TILE, n % TILE, out[tile])


@njit(nogil=True, cache=True)
def _copy_column(source, neuron, place, target):
    """Neuron ``neuron`` of a tile as number ``place`` of another one, whose pair is begun by its even neuron."""
    lane, shift = np.uint16(0xFF), np.uint16(8)
    (halves, all_codes), (copied_halves, all_copies) = parts_of(source), parts_of(target)
    for chunk in range(all_codes.shape[0]):
        codes, copies = all_codes[chunk], all_copies[chunk]
        pair, copied = neuron // 2 * _HALF, place // 2 * _HALF
        for j in range(_HALF):
            both = codes[pair + j]
            mine = both >> shift if neuron % 2 else both & lane
            copies[copied + j] = copies[copied + j] | (mine << shift) if place % 2 else mine
        for first in (0, TILE):
            copied_halves[chunk, first + place] = halves[chunk, first + neuron]
