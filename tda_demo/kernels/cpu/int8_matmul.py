"""Int8 matrices times several vectors at once, as a prompt's tokens are, by ``panels``.

Vectors are rounded as for one (``int8_rows.quantise``).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .int8_rows import BLOCK
from .nf4_loops import LOOP, f32
from .panels import OUTPUTS, PANEL, TOKENS, clear_columns, lay_neurons, lay_rows, multiply
from .vectors import LINE, ask_for_bytes


@njit(**LOOP)
def rows_times_tokens(matrix, scales, codes, units, first, last, out):
    """out[t, i] = scales[i] times row i of ``matrix`` int8 [n, columns] times token t.

    i is from ``first`` to ``last``, multiples of 16 that may lie beyond the last row; what ``out`` float32 [tokens,
    16 or more] has there means nothing. ``codes`` int16 [tokens, columns] and ``units`` float32 [tokens, blocks] have a
    rounded vector for every token; columns are a multiple of 16, and tokens one of 4.
    """
    panel, factors = np.empty(PANEL, np.int16), np.empty((1, OUTPUTS), f32)
    columns = matrix.shape[1]
    calls = codes.shape[0] // TOKENS * units.shape[1]
    lines = (columns * OUTPUTS // LINE + calls - 1) // calls  # of the rows to come
    for i in range(first, last, OUTPUTS):
        for k in range(OUTPUTS):
            factors[0, k] = scales[min(i + k, len(scales) - 1)]
        clear_columns(out, i, i + OUTPUTS)
        asked = (i + OUTPUTS) * columns
        for block in range(units.shape[1]):
            begin, end = block * BLOCK, min((block + 1) * BLOCK, columns)
            lay_rows(matrix, i, begin, end, panel)
            for t in range(0, codes.shape[0], TOKENS):
                ask_for_bytes(matrix, asked, lines)
                asked += lines * LINE
                multiply(panel, 1, (end - begin) // 2, factors, None, codes, begin, units, block, None, t, out, i)


@njit(**LOOP)
def neurons_times_tokens(matrix, output_scales, codes, units, first, last, out):
    """out[t, j] = output_scales[j] times the sum over neurons of token t's activation times ``matrix`` int8 [n, j].

    ``codes`` int16 [tokens, neurons] and ``units`` float32 [tokens, blocks] are rounded activations; tokens are a
    multiple of 4, neurons of 2; first and last, between which j is, of 16.
    """
    panel, factors = np.empty(PANEL, np.int16), np.empty((1, OUTPUTS), f32)
    neurons, width = matrix.shape
    parts = LINE // OUTPUTS  # of a line, each of which asks for some of the neurons to come
    part = BLOCK // parts
    count = (part * TOKENS + codes.shape[0] - 1) // codes.shape[0]
    clear_columns(out, first, last)
    for block in range(units.shape[1]):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, neurons)
        for j in range(first, last, OUTPUTS):
            for k in range(OUTPUTS):
                factors[0, k] = output_scales[j + k]
            for n in range(begin, end, 2):
                lay_neurons(matrix, n, j, panel, (n - begin) // 2)
            asked = (end + j // OUTPUTS % parts * part) * width + j // LINE * LINE
            for t in range(0, codes.shape[0], TOKENS):
                for _ in range(count):
                    ask_for_bytes(matrix, asked, 1)
                    asked += width
                multiply(panel, 1, (end - begin) // 2, factors, None, codes, begin, units, block, None, t, out, j)
