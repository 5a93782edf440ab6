"""The nf4 loops, those of this processor and the plain ones, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from tda_demo.kernels import nf4
from tda_demo.kernels.cpu import nf4_loops
from tda_demo.kernels.cpu.rows import matvec, weighted_rows


def case(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales, and the float64 [rows, columns] values they stand for."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, scales = nf4.encode(weight)
    return codes, scales, nf4.decode(codes, scales, columns).double().numpy()


@njit
def product(codes, scales, x, first, last, out):
    matvec(codes, scales, x, None, first, last, out)


@njit
def transposed_product(codes, scales, weights, first, last, out):
    weighted_rows(codes, scales, weights, None, first, last, out)


@settings(deadline=None)  # the first example compiles
@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 99))
def test_products_of_any_shape(rows: int, columns: int, seed: int) -> None:
    codes, scales, values = case(rows, columns, seed)
    random = np.random.default_rng(seed)
    x, weights = random.standard_normal(columns, np.float32), random.standard_normal(rows, np.float32)
    first, last = sorted(random.integers(0, rows + 1, 2))
    out, back = np.full(rows, 7, np.float32), np.empty(columns, np.float32)
    product(codes, scales, x, first, last, out)
    transposed_product(codes, scales, weights, first, last, back)
    expected = np.full(rows, 7.0)
    expected[first:last] = (values @ x)[first:last]
    np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(values).max() * np.abs(x).max() * columns**0.5)
    np.testing.assert_allclose(back, weights[first:last] @ values[first:last], atol=1e-5 * rows)


def test_a_vector_of_zeros_and_one_with_an_outlier() -> None:
    codes, scales, values = case(3, 128, 0)
    x = np.zeros(128, np.float32)
    out = np.empty(3, np.float32)
    product(codes, scales, x, 0, 3, out)
    assert (out == 0).all()
    x[:] = np.random.default_rng(0).standard_normal(128)
    x[5] = 1e4  # its block loses precision, the other one does not
    product(codes, scales, x, 0, 3, out)
    np.testing.assert_allclose(out, values @ x, rtol=1e-3)


@pytest.mark.skipif(not nf4_loops.HAS_SHUFFLE, reason="this processor has only the plain loops")
def test_the_plain_loops_compute_the_same() -> None:
    codes, scales, _ = case(5, 192, 1)
    x, units = nf4_loops.quantise(np.random.default_rng(1).standard_normal(192, np.float32), 3)

    def both(row_times: Any, add_row: Any) -> tuple[np.ndarray, np.ndarray]:
        @njit
        def run(codes, scales, x, units, times, out):
            for i in range(5):
                times[i] = row_times(codes, scales, i, x, units)
                add_row(codes, scales, i, np.float32(0.5 - i), out)

        times, out = np.empty(5, np.float32), np.zeros(192, np.float32)
        run(codes, scales, x, units, times, out)
        return times, out

    shuffled, plain = both(nf4_loops.row_times, nf4_loops.add_row), both(*nf4_loops.PLAIN)
    np.testing.assert_allclose(shuffled[0], plain[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shuffled[1], plain[1], rtol=1e-5, atol=1e-2)
