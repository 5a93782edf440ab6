"""The Triton programs of blocks whose active neurons are exact and whose others come from an NF4 copy (``rest``).

Import this only where ``device.has_triton``. They are ``programs`` and ``nf4_programs`` in one launch each, so that
neither half waits for the other to end. The list of neurons has the active ones at its first ``count[0]`` places and
the others from there to ``count[1]``; activations lie at the places of their neurons. Each row of a batch is a program
of its own, which reads the weights again.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from .nf4_programs import nf4_fired, nf4_weighted_rows
from .programs import active_rows, fired, weighted_rows


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
    GLU: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HELD: tl.constexpr,
):
    """Activations float32 [batch, FF] of the neurons listed, of row ``program_id(1)`` of x."""
    active, listed = tl.load(count), tl.load(count + 1)
    row = tl.program_id(1)
    exact = tl.cdiv(active, ROWS)
    for tile in range(tl.program_id(0), exact + tl.cdiv(listed - active, ROWS), tl.num_programs(0)):
        if tile < exact:
            places = tile * ROWS + tl.arange(0, ROWS)
            valid = places < active
            rows = active_rows(chosen, places, valid, False)
            value = fired(
                *(x + row * D, gate, up, None, None, gate_bias, up_bias, rows, valid, D, 1, 1),
                *(GLU, False, GATE_BIAS, UP_BIAS, KIND, COLUMNS),
            )
            tl.store(activations + row * FF + places[None, :], value, mask=valid[None, :])
        else:
            places = active + (tile - exact) * ROWS + tl.arange(0, ROWS)
            valid = places < listed
            rows = active_rows(chosen, places, valid, False)
            likely = nf4_fired(
                *(x + row * D, gate_codes, up_codes, gate_absmax, up_absmax, table, gate_bias, up_bias, rows, valid),
                *(D, GLU, GATE_BIAS, UP_BIAS, KIND, BLOCKS, HELD),
            )
            tl.store(activations + row * FF + places, likely, mask=valid)


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
    HELD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """partial float32 [splits, batch, D]: each split sums a stretch of the active neurons and one of the others.

    Columns of one program, of row ``program_id(2)`` of the activations.
    """
    active, listed = tl.load(count), tl.load(count + 1)
    split, splits = tl.program_id(0), tl.num_programs(0)
    row, batch = tl.program_id(2), tl.num_programs(2)
    begin, end = split * active // splits, (split + 1) * active // splits
    columns = tl.program_id(1) * (BLOCKS * 64) + tl.arange(0, BLOCKS * 64)
    total = weighted_rows(
        *(activations + row * FF, down, chosen, begin, end, columns, D, FF, 1, 1, False, ROWS, BLOCKS * 64, STAGES)
    )
    others = listed - active
    begin, end = active + split * others // splits, active + (split + 1) * others // splits
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    pairs = nf4_weighted_rows(
        *(activations + row * FF, codes, absmax, table, chosen, begin, end, blocks, D, False, ROWS, BLOCKS, HELD),
        STAGES,
    )
    total += tl.reshape(pairs, [1, BLOCKS * 64])
    tl.store(partial + (split * batch + row) * D + columns[None, :], total, mask=(columns < D)[None, :])
