"""Weighted sums of int8 rows, the weights rounded, against float64 and the error that rounding allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from tda_demo.kernels.cpu import int8_sums
from tda_demo.kernels.cpu.processor import HAS_SHUFFLE

pytestmark = pytest.mark.skipif(not HAS_SHUFFLE, reason="made of AVX2 instructions")


@njit
def run(codes, weights, first, last, out, chosen, begin, of_chosen):
    int8_sums.weighted_rows(codes, weights, first, last, out)
    int8_sums.weighted_rows_of_chosen(codes, weights, chosen, first, last, begin, of_chosen)


def allowed(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far each sum may be off: every weight by half a unit of the largest, and float32 by its own rounding."""
    unit = np.abs(weights).max(initial=0) / (2**15 - 1)
    return (0.501 * unit + 2e-6 * np.abs(weights)) @ np.abs(codes.astype(np.float64)) + 1e-30


@settings(max_examples=80, deadline=None)  # the first example compiles
@given(
    rows=st.integers(1, 1200),
    columns=st.integers(1, 150),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
)
def test_sums_are_off_by_no_more_than_rounding_allows(rows: int, columns: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (rows, columns), dtype=np.int8)
    weights = (size * random.standard_normal(rows) * np.exp(2 * random.standard_normal(rows))).astype(np.float32)
    first, last = sorted(random.integers(0, rows + 1, 2).tolist())
    chosen, begin = random.integers(0, rows, rows), int(random.integers(0, columns))
    out, of_chosen = np.full(columns, np.nan, np.float32), np.full(columns - begin, np.nan, np.float32)
    run(codes, weights, first, last, out, chosen, begin, of_chosen)
    some = weights[first:last].astype(np.float64)
    for found, summed in ((out, codes[first:last]), (of_chosen, codes[chosen[first:last], begin:])):
        assert (np.abs(found - some @ summed.astype(np.float64)) <= allowed(summed, some)).all()


def test_the_largest_sums_fit() -> None:
    """All codes and all weights at their largest, over many blocks."""
    codes, weights = np.full((9_000, 33), -127, np.int8), np.full(9_000, -3.0, np.float32)
    out, of_chosen = np.empty(33, np.float32), np.empty(33, np.float32)
    run(codes, weights, 0, len(codes), out, np.arange(len(codes)), 0, of_chosen)
    assert np.allclose(out, 127 * 3.0 * 9_000, rtol=1e-5) and np.allclose(of_chosen, out, rtol=1e-6)


def test_every_column_is_in_its_place() -> None:
    codes = np.arange(-80, 80, dtype=np.int8)[None].repeat(8, axis=0)
    out, of_chosen = np.empty(160, np.float32), np.empty(160, np.float32)
    run(codes, np.ones(8, np.float32), 0, 8, out, np.arange(8), 0, of_chosen)
    np.testing.assert_allclose(out, 8.0 * codes[0], rtol=1e-4)
    np.testing.assert_allclose(of_chosen, out, rtol=1e-6)


def test_no_rows_and_no_weight_give_nothing() -> None:
    codes, out, of_chosen = np.ones((6, 40), np.int8), np.empty(40, np.float32), np.empty(40, np.float32)
    run(codes, np.ones(6, np.float32), 2, 2, out, np.arange(6), 0, of_chosen)
    assert not out.any() and not of_chosen.any()
    run(codes, np.zeros(6, np.float32), 0, 6, out, np.arange(6), 0, of_chosen)
    assert not out.any() and not of_chosen.any()
