"""The Triton programs of the GPU kernels; import this only where ``device.has_triton``: CPU machines have no Triton.

One token reads every weight once, so these programs do nothing but keep reads in flight: 16-byte loads along d, whole
rows loaded before their first use, many programs a multiprocessor, weights marked as first to leave the cache and what
all programs share (x, the activations) as last. Sums are float32, in an order that the sizes alone decide, so equal
inputs give equal bits; there are no atomics.

Where the card can (compute capability 9.0), launches overlap: ``OVERLAP``. A program lets the next launch begin at
once, asks for weights, which no launch writes, and only then waits for the launch before it. All programs of a launch
wait, so that one that has ended means that all before it have.

Every program takes the active set from device memory: the first ``count[0]`` entries of ``chosen``. The grid is laid
out for all neurons and does not depend on them, so that a captured graph serves every active set.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..activations import GELU_ERF, GELU_TANH, SILU

_SILU = tl.constexpr(SILU)
_GELU_TANH = tl.constexpr(GELU_TANH)
_GELU_ERF = tl.constexpr(GELU_ERF)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation function of float32 ``x``; tanh by way of exp, which overflows to its right limits."""
    if KIND == _SILU:
        return x / (1.0 + tl.exp(-x))
    elif KIND == _GELU_TANH:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    elif KIND == _GELU_ERF:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return tl.maximum(x, 0.0)


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """The next launch may begin; it waits for this one where it reads what this one writes."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Until the launch before this one has ended and what it wrote can be read."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def neurons_at(chosen, places, count, ALL: tl.constexpr):
    """The neurons at ``places`` of the first ``count`` of the list, int64; row numbers where all neurons are active."""
    if ALL:
        return places.to(tl.int64)
    else:
        return tl.load(chosen + places, mask=places < count, other=0).to(tl.int64)


@triton.jit
def read_rows(weight, rows, valid, D: tl.constexpr, PADDED: tl.constexpr):
    """[rows, PADDED] in the weight's dtype: the given rows of weight [neurons, D], 0 beyond D."""
    columns = tl.arange(0, PADDED)
    return tl.load(
        weight + rows[:, None] * D + columns[None, :],
        mask=valid[:, None] & (columns < D)[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )


@triton.jit
def read_vector(x, D: tl.constexpr, PADDED: tl.constexpr):
    """float32 [PADDED], 0 beyond D."""
    columns = tl.arange(0, PADDED)
    return tl.load(x + columns, mask=columns < D, other=0.0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def times(matrix, vector):
    """float32 [rows]: ``matrix`` [rows, PADDED] times ``vector`` [PADDED]."""
    return tl.sum(matrix.to(tl.float32) * vector[None, :], axis=1)


@triton.jit
def fired(
    opened,
    value,
    gate_scale,
    up_scale,
    gate_bias,
    up_bias,
    rows,
    valid,
    GLU: tl.constexpr,
    SCALED: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
):
    """The activations float32 [rows] from the products of gate (``opened``; ignored in plain blocks) and up."""
    if SCALED:
        value *= tl.load(up_scale + rows, mask=valid, other=0.0)
        if GLU:
            opened *= tl.load(gate_scale + rows, mask=valid, other=0.0)
    if UP_BIAS:
        value += tl.load(up_bias + rows, mask=valid, other=0.0).to(tl.float32)
    if GLU:
        if GATE_BIAS:
            opened += tl.load(gate_bias + rows, mask=valid, other=0.0).to(tl.float32)
        return activate(opened, KIND) * value
    else:
        return activate(value, KIND)


@triton.jit
def neurons_program(
    x,
    gate,
    up,
    gate_scale,
    up_scale,
    gate_bias,
    up_bias,
    chosen,
    count,
    activations,
    D: tl.constexpr,
    FF: tl.constexpr,
    PADDED: tl.constexpr,
    GLU: tl.constexpr,
    SCALED: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    KIND: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Activations float32 [FF] of the active neurons, place by place; what lies beyond ``count`` stays.

    ``SCALED``: weights are int8 codes, each row with a float32 scale. A program takes every ``num_programs``-th tile
    and asks for the next one's weights before it adds up its own.
    """
    let_next_begin(OVERLAP)
    active = FF if ALL else tl.load(count)
    step = tl.num_programs(0) * ROWS
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = neurons_at(chosen, places, active, ALL)
    up_rows = read_rows(up, rows, places < active, D, PADDED)
    gate_rows = up_rows
    if GLU:
        gate_rows = read_rows(gate, rows, places < active, D, PADDED)
    next_rows = neurons_at(chosen, places + step, active, ALL)
    wait_for_previous(OVERLAP)
    inputs = read_vector(x, D, PADDED)
    for _ in range(tl.program_id(0) * ROWS, active, step):
        after = places + step
        next_up = read_rows(up, next_rows, after < active, D, PADDED)
        next_gate = next_up
        if GLU:
            next_gate = read_rows(gate, next_rows, after < active, D, PADDED)
        rows_after = neurons_at(chosen, after + step, active, ALL)
        valid = places < active
        value = times(up_rows, inputs)
        opened = value
        if GLU:
            opened = times(gate_rows, inputs)
        value = fired(
            *(opened, value, gate_scale, up_scale, gate_bias, up_bias, rows, valid),
            *(GLU, SCALED, GATE_BIAS, UP_BIAS, KIND),
        )
        tl.store(activations + places, value, mask=valid)
        places, rows, next_rows, up_rows, gate_rows = after, next_rows, rows_after, next_up, next_gate


@triton.jit
def read_pieces(down, rows, valid, columns, D: tl.constexpr):
    """[rows, columns] in the weight's dtype: the given rows of down [neurons, D], some columns of them."""
    return tl.load(
        down + rows[:, None] * D + columns[None, :],
        mask=valid[:, None] & (columns < D)[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )


@triton.jit
def add_weighted(total, tile, activations, places, valid):
    """``total`` [columns] plus the rows of ``tile`` [rows, columns] times the activations at ``places``."""
    weights = tl.load(activations + places, mask=valid, other=0.0, eviction_policy="evict_last")
    return total + tl.sum(tile.to(tl.float32) * weights[:, None], axis=0)


@triton.jit
def down_program(
    activations,
    down,
    chosen,
    count,
    partial,
    D: tl.constexpr,
    FF: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """partial float32 [splits, D]: each split sums its stretch of the active set, columns of one program.

    The next rows are asked for before those at hand are added up.
    """
    let_next_begin(OVERLAP)
    active = FF if ALL else tl.load(count)
    split, splits = tl.program_id(0), tl.num_programs(0)
    begin, end = split * active // splits, (split + 1) * active // splits
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = begin + tl.arange(0, ROWS)
    tile = read_pieces(down, neurons_at(chosen, places, end, ALL), places < end, columns, D)
    next_rows = neurons_at(chosen, places + ROWS, end, ALL)
    wait_for_previous(OVERLAP)
    total = tl.zeros([COLUMNS], tl.float32)
    for _ in range(begin, end, ROWS):
        after = places + ROWS
        next_tile = read_pieces(down, next_rows, after < end, columns, D)
        next_rows = neurons_at(chosen, after + ROWS, end, ALL)
        total = add_weighted(total, tile, activations, places, places < end)
        places, tile = after, next_tile
    tl.store(partial + split * D + columns, total, mask=columns < D)


@triton.jit
def sum_program(
    partial,
    scale,
    bias,
    out,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """out [D] = the splits of ``partial`` added up, times the scale, plus the bias; some columns a program."""
    let_next_begin(OVERLAP)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < D
    splits = tl.arange(0, SPLITS)  # a power of two, as Triton's ranges are
    wait_for_previous(OVERLAP)
    parts = tl.load(partial + splits[:, None] * D + columns[None, :], mask=inside[None, :], other=0.0)
    total = tl.sum(parts, axis=0)
    if SCALED:
        total *= tl.load(scale + columns, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def linear_program(
    x,
    weight,
    bias,
    out,
    OUTPUTS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """out [OUTPUTS] = weight [OUTPUTS, D] times x [D], plus the bias; some rows a program."""
    let_next_begin(OVERLAP)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = rows < OUTPUTS
    matrix = read_rows(weight, rows, valid, D, PADDED)
    wait_for_previous(OVERLAP)
    value = times(matrix, read_vector(x, D, PADDED))
    if BIAS:
        value += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=valid)
