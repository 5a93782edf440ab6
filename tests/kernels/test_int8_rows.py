"""Rows of int8 codes times a rounded vector, against float64 and the error that rounding allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from tda_demo.kernels.cpu import int8_rows
from tda_demo.kernels.cpu.processor import HAS_SHUFFLE

pytestmark = pytest.mark.skipif(not HAS_SHUFFLE, reason="made of AVX2 instructions")


@njit
def run(rows, scales, x, out, chosen, of_chosen):
    int8_rows.matvec(rows, scales, x, 0, len(rows), out)
    int8_rows.matvec_of_chosen(rows, scales, x, chosen, 0, len(chosen), of_chosen)


def allowed(rows: np.ndarray, scales: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How far each product may be off: every element by half a unit of its block, and float32 by its own rounding."""
    blocks = [x[begin : begin + int8_rows.BLOCK] for begin in range(0, len(x), int8_rows.BLOCK)]
    unit = np.concatenate([np.full(len(block), np.abs(block).max() / (2**15 - 1)) for block in blocks])
    sizes = np.abs(rows.astype(np.float64)) @ (0.501 * unit + 1e-6 * np.abs(x))
    return scales * sizes + 1e-30


@settings(max_examples=60)
@given(st.integers(1, 23), st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-3, 1.0, 1e6]))
def test_products_are_off_by_no_more_than_rounding_allows(count: int, columns: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-127, 128, (count, columns), dtype=np.int8)
    scales = random.uniform(0.1, 2, count).astype(np.float32)
    x = (size * random.standard_normal(columns) * np.exp(2 * random.standard_normal(columns))).astype(np.float32)
    chosen = np.sort(random.choice(count, random.integers(1, count + 1), replace=False))
    out, of_chosen = np.full(count, np.nan, np.float32), np.full(len(chosen), np.nan, np.float32)
    run(rows, scales, x, out, chosen, of_chosen)
    exact = scales.astype(np.float64) * (rows.astype(np.float64) @ x.astype(np.float64))
    assert (np.abs(out - exact) <= allowed(rows, scales, x)).all()
    assert (np.abs(of_chosen - exact[chosen]) <= allowed(rows, scales, x)[chosen]).all()


@given(st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_elements_are_rounded_to_the_nearest(columns: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(columns).astype(np.float32)
    codes, units = int8_rows.quantised(x)
    for number, begin in enumerate(range(0, columns, int8_rows.BLOCK)):
        block, found = x[begin : begin + int8_rows.BLOCK], codes[begin : begin + int8_rows.BLOCK]
        assert units[number] == pytest.approx(np.abs(block).max() / (2**15 - 1), rel=1e-6)
        assert np.abs(found - block / units[number].astype(np.float64)).max() < 0.51
        assert np.abs(found).max() == 2**15 - 1


def test_the_largest_sums_fit() -> None:
    """All codes and all elements at their largest, over many blocks."""
    rows, x = np.full((5, 20_000), -127, np.int8), np.full(20_000, -3.0, np.float32)
    out, of_chosen = np.empty(5, np.float32), np.empty(5, np.float32)
    run(rows, np.ones(5, np.float32), x, out, np.arange(5), of_chosen)
    assert np.allclose(out, 127 * 3.0 * 20_000, rtol=1e-5) and np.allclose(of_chosen, out, rtol=1e-6)


def test_nothing_gives_nothing() -> None:
    out, of_chosen = np.empty(6, np.float32), np.empty(1, np.float32)
    run(np.ones((6, 40), np.int8), np.ones(6, np.float32), np.zeros(40, np.float32), out, np.array([3]), of_chosen)
    assert not out.any() and not of_chosen.any()
