"""Compiled products of a whole matrix and a prompt's tokens, for the formats that have them: int8 and q4.

The others are multiplied by torch, which reads them as floats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from ..q4_sizes import GROUP, RECORD, RECORD_BYTES
from . import int8_matmul, q4_matmul
from .int8_rows import BLOCK, quantise
from .nf4_loops import LOOP, f32
from .panels import OUTPUTS, TOKENS
from .partition import share
from .processor import HAS_SHUFFLE

WITH_MATMUL: tuple[type[np.generic], ...] = (np.int8, np.uint32) if HAS_SHUFFLE else ()
"""The types of codes (``formats``) that are multiplied, odd sizes aside, faster than torch multiplies floats."""


class Rounded(NamedTuple):
    """Vectors of several tokens, a multiple of 4, rounded for a matrix of one format.

    ``codes`` int16 [tokens, columns], ``units`` float32 [tokens, blocks] as ``int8_rows.quantise`` has them; ``sums``
    float32 [tokens, groups] of each group's codes for q4, None for int8.
    """

    codes: np.ndarray
    units: np.ndarray
    sums: np.ndarray | None


def rows_have_matmul(codes: np.ndarray) -> bool:
    """Whether there is a product of a matrix in ``codes`` (``formats.Rows``)."""
    fits = codes.dtype == np.uint32 or (codes.dtype == np.int8 and codes.shape[1] % 16 == 0 < codes.shape[1])
    return HAS_SHUFFLE and fits and len(codes) > 1


def neurons_have_matmul(codes: np.ndarray) -> bool:
    """Whether there is one of a down projection in ``codes`` (``formats.ByNeuron``)."""
    return (
        HAS_SHUFFLE
        and codes.dtype == np.int8
        and codes.shape[0] % 2 == 0 < len(codes)
        and codes.shape[1] % OUTPUTS == 0
    )


def tokens_of(count: int) -> int:
    """``count`` and as many more as products are computed of."""
    return _filled_up(count, TOKENS)


def outputs_of(count: int) -> int:
    """The same of outputs."""
    return _filled_up(count, OUTPUTS)


def room_by_row(codes: np.ndarray, tokens: int) -> Rounded:
    """For what the rows of a matrix in ``codes`` (``formats.Rows``) are multiplied with: zeros."""
    if codes.dtype != np.uint32:
        return _room(codes.shape[1], tokens)
    columns = codes.shape[1] * codes.itemsize // RECORD_BYTES * RECORD
    return _room(columns, tokens)._replace(sums=np.zeros((tokens_of(tokens), columns // GROUP), f32))


def room_by_neuron(codes: np.ndarray, tokens: int) -> Rounded:
    """The same for activations and a down projection in ``codes`` (``formats.ByNeuron``)."""
    return _room(len(codes), tokens)


def _room(columns: int, tokens: int) -> Rounded:
    count = tokens_of(tokens)
    return Rounded(np.zeros((count, columns), np.int16), np.zeros((count, -(-columns // BLOCK)), f32), None)


def _filled_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def rows_product(codes: np.ndarray, scales: np.ndarray, x: np.ndarray, threads: int) -> np.ndarray:
    """x float32 [T, columns] times the rows of a matrix, as ``formats.Rows`` has them: float32 [T, rows]."""
    out = np.empty((tokens_of(len(x)), outputs_of(len(codes))), f32)
    _rows_product(codes, scales, x, room_by_row(codes, len(x)), threads, out)
    return out[: len(x), : len(codes)]


def neurons_product(codes: np.ndarray, output_scales: np.ndarray, activations: np.ndarray, threads: int) -> np.ndarray:
    """``activations`` float32 [T, d_ff] times a down projection, as ``formats.ByNeuron`` has it: float32 [T, d]."""
    out = np.empty((tokens_of(len(activations)), codes.shape[1]), f32)
    _neurons_product(codes, output_scales, activations, room_by_neuron(codes, len(activations)), threads, out)
    return out[: len(activations)]


@njit(parallel=True, **LOOP)
def _rows_product(codes, scales, x, rounded, threads, out):
    for t in prange(threads):
        first, last = share(x.shape[0], t, threads)
        for token in range(first, last):
            round_token(x[token], rounded, token)
    for t in prange(threads):
        first, last = outputs_share(codes.shape[0], t, threads)
        multiply_rows(codes, scales, rounded, first, last, out)


@njit(parallel=True, **LOOP)
def _neurons_product(codes, output_scales, activations, rounded, threads, out):
    for t in prange(threads):
        first, last = share(activations.shape[0], t, threads)
        for token in range(first, last):
            round_token(activations[token], rounded, token)
    for t in prange(threads):
        first, last = outputs_share(codes.shape[1], t, threads)
        int8_matmul.neurons_times_tokens(codes, output_scales, rounded.codes, rounded.units, first, last, out)


@njit(**LOOP)
def outputs_share(count, t, threads):
    """The outputs of thread ``t``, of ``count``: from a multiple of 16 to one, which may lie beyond the last."""
    first, last = share((count + OUTPUTS - 1) // OUTPUTS, t, threads)
    return first * OUTPUTS, last * OUTPUTS


def round_token(x, rounded, t):
    """Writes x float32 [columns] as row t of ``rounded``."""
    raise NotImplementedError("only inside compiled code")


@overload(round_token, jit_options=LOOP)
def _round_token(x, rounded, t):
    _codes, _units, sums = rounded
    return _for_int8 if isinstance(sums, types.NoneType) else _for_q4


def _for_int8(x, rounded, t):
    quantise(x, rounded.codes[t], rounded.units[t])


def _for_q4(x, rounded, t):
    q4_matmul.quantise_row(x, rounded.codes[t], rounded.units[t], rounded.sums[t])


def multiply_rows(codes, scales, rounded, first, last, out):
    """out[t, i] = row i of a matrix (``formats.Rows``) times token t, for i from first to last (``outputs_share``).

    ``out`` is float32 [tokens, as many outputs]; beyond the last row it means nothing.
    """
    raise NotImplementedError("only inside compiled code")


@overload(multiply_rows, jit_options=LOOP)
def _multiply_rows(codes, scales, rounded, first, last, out):
    return _int8_rows if codes.dtype == types.int8 else _q4_rows


def _int8_rows(codes, scales, rounded, first, last, out):
    int8_matmul.rows_times_tokens(codes, scales, rounded.codes, rounded.units, first, last, out)


def _q4_rows(codes, scales, rounded, first, last, out):
    q4_matmul.rows_times_tokens(codes, rounded.codes, rounded.units, rounded.sums, first, last, out)
