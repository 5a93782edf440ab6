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
from .panels import GROUPS, OUTPUTS, PANEL, TOKENS, clear_columns, lay_records, multiply
from .vectors import LINE, ask_for_bytes

_RECORDS = BLOCK // RECORD  # that are rounded alike


@njit(**LOOP)
def quantise_row(x, codes, units, sums):
    """x float32 [columns] as ``int8_rows.quantised`` has it, filled up with zeros to whole records.

    ``codes`` int16 [64 * records] and ``units`` float32 [blocks] are written, and ``sums`` float32 [2 * records] of
    each group's codes.
    """
    if x.shape[0] == codes.shape[0]:
        quantise(x, codes, units)
    else:
        whole = np.zeros(codes.shape[0], f32)
        for j in range(x.shape[0]):
            whole[j] = x[j]
        quantise(whole, codes, units)
    for group in range(sums.shape[0]):
        total = np.int32(0)
        for j in range(GROUP):
            total += np.int32(codes[group * GROUP + j])
        sums[group] = f32(total)


@njit(**LOOP)
def rows_times_tokens(records, codes, units, sums, first, last, out):
    """out[t, i] = row i of ``records`` uint32 [n, 10 records] times token t, i from ``first`` to ``last``.

    Both are multiples of 16 and may lie beyond the last row; what ``out`` float32 [tokens, 16 or more] has there means
    nothing. ``codes``, ``units`` and ``sums`` have a row of ``quantise_row`` for every token, a multiple of 4 of them.
    """
    panel = np.empty(PANEL, np.int16)
    row_bytes, calls = records.shape[1] * records.itemsize, codes.shape[0] // TOKENS * units.shape[1]
    lines = (row_bytes * OUTPUTS // LINE + calls - 1) // calls  # of the rows to come
    scales, minima = np.empty((GROUPS, OUTPUTS), f32), np.empty((GROUPS, OUTPUTS), f32)
    for i in range(first, last, OUTPUTS):
        clear_columns(out, i, i + OUTPUTS)
        asked = (i + OUTPUTS) * row_bytes
        for block in range(units.shape[1]):
            begin, end = block * _RECORDS, min((block + 1) * _RECORDS, codes.shape[1] // RECORD)
            for record in range(begin, end):
                lay_records(records, i, record, record - begin, panel, scales, minima)
            groups, column = (end - begin) * (RECORD // GROUP), begin * RECORD
            for t in range(0, codes.shape[0], TOKENS):
                ask_for_bytes(records, asked, lines)
                asked += lines * LINE
                multiply(panel, groups, GROUP // 2, scales, minima, codes, column, units, block, sums, t, out, i)
