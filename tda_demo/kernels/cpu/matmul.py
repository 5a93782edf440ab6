"""Compiled products of a whole matrix and a prompt's tokens, for the formats that have them: int8 and q4.

The others are multiplied by torch, which reads them as floats.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..q4_sizes import GROUP, RECORD, RECORD_BYTES
from . import int8_matmul, q4_matmul
from .int8_rows import BLOCK
from .nf4_loops import HAS_SHUFFLE, LOOP, f32
from .panels import OUTPUTS, TOKENS
from .partition import share

WITH_MATMUL: tuple[type[np.generic], ...] = (np.int8, np.uint32) if HAS_SHUFFLE else ()
"""The types of codes (``formats``) that are multiplied, odd sizes aside, about as fast as torch multiplies floats."""


def rows_have_matmul(codes: np.ndarray) -> bool:
    """Whether ``rows_product`` takes a matrix in ``codes`` (``formats.Rows``)."""
    fits = codes.dtype == np.uint32 or (codes.dtype == np.int8 and codes.shape[1] % 16 == 0 < codes.shape[1])
    return HAS_SHUFFLE and fits and len(codes) > 1


def neurons_have_matmul(codes: np.ndarray) -> bool:
    """Whether ``neurons_product`` takes a down projection in ``codes`` (``formats.ByNeuron``)."""
    return (
        HAS_SHUFFLE
        and codes.dtype == np.int8
        and codes.shape[0] % 2 == 0 < len(codes)
        and codes.shape[1] % OUTPUTS == 0
    )


def rows_product(codes: np.ndarray, scales: np.ndarray, x: np.ndarray, threads: int) -> np.ndarray:
    """x float32 [T, columns] times the rows of a matrix, as ``formats.Rows`` has them: float32 [T, rows]."""
    out = np.empty((_filled_up(len(x), TOKENS), _filled_up(len(codes), OUTPUTS)), f32)
    if codes.dtype == np.uint32:
        _records_product(codes.view(np.uint8).reshape(len(codes), -1, RECORD_BYTES), x, threads, out)
    else:
        _int8_product(codes, scales, x, threads, out)
    return out[: len(x), : len(codes)]


def neurons_product(codes: np.ndarray, output_scales: np.ndarray, activations: np.ndarray, threads: int) -> np.ndarray:
    """``activations`` float32 [T, d_ff] times a down projection, as ``formats.ByNeuron`` has it: float32 [T, d]."""
    out = np.empty((_filled_up(len(activations), TOKENS), codes.shape[1]), f32)
    _neurons_product(codes, output_scales, activations, threads, out)
    return out[: len(activations)]


def _filled_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@njit(parallel=True, **LOOP)
def _int8_product(rows, scales, x, threads, out):
    codes, units = _room(x, out.shape[0])
    for t in prange(threads):
        first, last = share(out.shape[0], t, threads)
        for token in range(first, last):
            int8_matmul.quantise_token(x, token, codes, units)
    for t in prange(threads):
        first, last = share(out.shape[1] // OUTPUTS, t, threads)
        int8_matmul.rows_times_tokens(rows, scales, codes, units, first * OUTPUTS, last * OUTPUTS, out)


@njit(parallel=True, **LOOP)
def _neurons_product(neurons, output_scales, activations, threads, out):
    codes, units = _room(activations, out.shape[0])
    for t in prange(threads):
        first, last = share(out.shape[0], t, threads)
        for token in range(first, last):
            int8_matmul.quantise_token(activations, token, codes, units)
    for t in prange(threads):
        first, last = share(out.shape[1] // OUTPUTS, t, threads)
        int8_matmul.neurons_times_tokens(neurons, output_scales, codes, units, first * OUTPUTS, last * OUTPUTS, out)


@njit(**LOOP)
def _room(x, tokens):
    return np.empty((tokens, x.shape[1]), np.int16), np.empty((tokens, (x.shape[1] + BLOCK - 1) // BLOCK), f32)


@njit(parallel=True, **LOOP)
def _records_product(records, x, threads, out):
    columns = records.shape[1] * RECORD
    codes = np.empty((out.shape[0], columns), np.int16)
    units = np.empty((out.shape[0], (columns + BLOCK - 1) // BLOCK), f32)
    sums = np.empty((out.shape[0], columns // GROUP), f32)
    for t in prange(threads):
        first, last = share(out.shape[0], t, threads)
        for token in range(first, last):
            q4_matmul.quantise_token(x, token, codes, units, sums)
    for t in prange(threads):
        first, last = share(out.shape[1] // OUTPUTS, t, threads)
        q4_matmul.rows_times_tokens(records, codes, units, sums, first * OUTPUTS, last * OUTPUTS, out)
