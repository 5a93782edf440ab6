"""The Triton programs of blocks whose active neurons are exact and whose others come from an NF4 copy (``rest``).

Import this only where ``device.has_triton``. They are ``programs`` and ``nf4_programs`` in one launch each, so that
neither half waits for the other to end. The list of neurons has the active ones at its first ``count[0]`` places and
the others from there to ``count[1]``; activations lie at the places of their neurons.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from .nf4_programs import nf4_weighted_rows
from .nf4_reading import lane_level, nf4_times, read_eighths, read_scales, read_words
from .programs import (
    add_weighted,
    fired,
    let_next_begin,
    neurons_at,
    read_pieces,
    read_rows,
    read_vector,
    times,
    wait_for_previous,
)


@triton.jit
def neurons_and_rest_program(
    x,
    gate,
    up,
    gate_codes,
    up_codes,
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
    PADDED: tl.constexpr,
    GLU: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHUFFLED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Activations float32 [FF] of the neurons listed. A tile is of one half; the exact ones, which take longer, first.

    The halves take turns in one loop and so does what their reads need of x, which the first-level cache holds.
    """
    let_next_begin(OVERLAP)
    active, listed = tl.load(count), tl.load(count + 1)
    exact = tl.cdiv(active, ROWS)
    blocks = tl.arange(0, BLOCKS)
    levels = lane_level(table, SHUFFLED)
    wait_for_previous(OVERLAP)
    for tile in range(tl.program_id(0), exact + tl.cdiv(listed - active, ROWS), tl.num_programs(0)):
        if tile < exact:
            places = tile * ROWS + tl.arange(0, ROWS)
            rows = neurons_at(chosen, places, active, False)
            valid = places < active
            up_rows = read_rows(up, rows, valid, D, PADDED)
            gate_rows = up_rows
            if GLU:
                gate_rows = read_rows(gate, rows, valid, D, PADDED)
            inputs = read_vector(x, D, PADDED)
            value = times(up_rows, inputs)
            opened = value
            if GLU:
                opened = times(gate_rows, inputs)
        else:
            places = active + (tile - exact) * ROWS + tl.arange(0, ROWS)
            rows = neurons_at(chosen, places, listed, False)
            valid = places < listed
            up_words = read_words(up_codes, rows, valid, blocks, D)
            up_scales = read_scales(up_absmax, rows, valid, blocks, D)
            gate_words, gate_scales = up_words, up_scales
            if GLU:
                gate_words = read_words(gate_codes, rows, valid, blocks, D)
                gate_scales = read_scales(gate_absmax, rows, valid, blocks, D)
            eighths = read_eighths(x, 0, D, BLOCKS)
            value = tl.sum(nf4_times(up_words, up_scales, eighths, levels, SHUFFLED), axis=1)
            opened = value
            if GLU:
                opened = tl.sum(nf4_times(gate_words, gate_scales, eighths, levels, SHUFFLED), axis=1)
        value = fired(
            *(opened, value, None, None, gate_bias, up_bias, rows, valid), *(GLU, False, GATE_BIAS, UP_BIAS, KIND)
        )
        tl.store(activations + places, value, mask=valid)


@triton.jit
def down_and_rest_program(
    activations,
    down,
    codes,
    absmax,
    table,
    chosen,
    count,
    partial,
    D: tl.constexpr,
    FF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHUFFLED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """partial float32 [splits, D]: each split sums a stretch of the active neurons and one of the others.

    Columns of one program.
    """
    let_next_begin(OVERLAP)
    active, listed = tl.load(count), tl.load(count + 1)
    split, splits = tl.program_id(0), tl.num_programs(0)
    columns = tl.program_id(1) * (BLOCKS * 64) + tl.arange(0, BLOCKS * 64)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    others = listed - active
    begin, end = active + split * others // splits, active + (split + 1) * others // splits
    total = nf4_weighted_rows(
        *(activations, codes, absmax, lane_level(table, SHUFFLED), chosen, begin, end, blocks),
        *(D, False, ROWS, BLOCKS, SHUFFLED, OVERLAP),
    )
    begin, end = split * active // splits, (split + 1) * active // splits
    for first in range(begin, end, ROWS):
        places = first + tl.arange(0, ROWS)
        tile = read_pieces(down, neurons_at(chosen, places, end, False), places < end, columns, D)
        total = add_weighted(total, tile, activations, places, places < end)
    tl.store(partial + split * D + columns, total, mask=columns < D)
