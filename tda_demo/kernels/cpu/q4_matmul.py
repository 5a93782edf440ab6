"""Rows of the low-bit format (``kernels.q4``) times several vectors at once, as a prompt's tokens are, by ``panels``.

Vectors are rounded to 16 bits (``int8_rows``), not to the 8 of a single one (``q4_rows``): bound by arithmetic, not by
bytes, that costs little, and a prompt is read as exactly as floats would.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..q4_sizes import GROUP, RECORD
from .int8_rows import BLOCK, quantise
from .nf4_loops import LOOP, f32
from .panels import GROUPS, OUTPUTS, PANEL, TOKENS, lay_records, multiply

_RECORDS = BLOCK // RECORD  # that are rounded alike


@njit(**LOOP)
def quantise_token(x, t, codes, units, sums):
    """Row t of x float32 [T, columns], zeros where x has no such row, filled up with zeros to whole records.

    ``codes`` int16 [tokens, 64 * records] and ``units`` float32 [tokens, blocks] as ``int8_rows.quantised`` has them;
    ``sums`` float32 [tokens, 2 * records] of each group's codes.
    """
    whole = np.zeros(codes.shape[1], f32)
    if t < x.shape[0]:
        for j in range(x.shape[1]):
            whole[j] = x[t, j]
    quantise(whole, codes[t], units[t])
    for group in range(sums.shape[1]):
        total = np.int32(0)
        for j in range(group * GROUP, (group + 1) * GROUP):
            total += np.int32(codes[t, j])
        sums[t, group] = f32(total)


@njit(**LOOP)
def rows_times_tokens(records, codes, units, sums, first, last, out):
    """out[t, i] = row i of ``records`` uint8 [n, records, 40] times token t, i from ``first`` to ``last``.

    Both are multiples of 16 and may lie beyond the last row; what ``out`` float32 [tokens, 16 or more] has there means
    nothing. ``codes``, ``units`` and ``sums`` are from ``quantise_token``; tokens are a multiple of 4.
    """
    panel = np.empty(PANEL, np.int16)
    scales, minima = np.empty((GROUPS, OUTPUTS), f32), np.empty((GROUPS, OUTPUTS), f32)
    for i in range(first, last, OUTPUTS):
        for t in range(out.shape[0]):
            out[t, i : i + OUTPUTS] = 0
        for block in range(units.shape[1]):
            begin, end = block * _RECORDS, min((block + 1) * _RECORDS, records.shape[1])
            for record in range(begin, end):
                lay_records(records, i, record, record - begin, panel, scales, minima)
            groups, column = (end - begin) * (RECORD // GROUP), begin * RECORD
            for t in range(0, codes.shape[0], TOKENS):
                multiply(panel, groups, GROUP // 2, scales, minima, codes, column, units, block, sums, t, out, i)
