"""Products of matrices and several tokens, against float64, the error that rounding allows, and the products of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.kernels.cpu import cores, int8_rows
from tda_demo.kernels.cpu.linear import NeuronMajor, RowMajor, compiled
from tda_demo.kernels.cpu.processor import HAS_SHUFFLE
from tda_demo.kernels.formats import FORMATS, ByNeuron, Rows, encode, encode_by_neuron, format_of

pytestmark = pytest.mark.skipif(not HAS_SHUFFLE, reason="made of AVX2 instructions")

NO_BIAS = np.empty(0, np.float32)
sizes = st.sampled_from([1e-20, 1e-3, 1.0, 1e4])


def tokens(random: np.random.Generator, count: int, columns: int, size: float) -> np.ndarray:
    """Of very different sizes; some zeros, and at times a token of nothing else."""
    x = size * random.standard_normal((count, columns)) * np.exp(2 * random.standard_normal((count, 1)))
    x[random.random((count, columns)) < 0.1] = 0
    x[random.random(count) < 0.2] = 0
    return x.astype(np.float32)


def half_units(x: np.ndarray, block: int, largest: int) -> np.ndarray:
    """How far an element may be off once each ``block`` is rounded to ``largest`` steps, and float32's own rounding."""
    parts = [x[:, begin : begin + block] for begin in range(0, x.shape[1], block)]
    units = [np.broadcast_to(np.abs(part).max(axis=1, keepdims=True) / largest, part.shape) for part in parts]
    return 0.501 * np.concatenate(units, axis=1) + 2e-6 * np.abs(x)


def multiplied(matrix: RowMajor | NeuronMajor, x: np.ndarray, threads: int) -> np.ndarray:
    assert matrix.has_matmul
    with cores(threads):
        return matrix.matmul(torch.from_numpy(x)).numpy()


@settings(max_examples=60)
@given(st.integers(1, 11), st.integers(2, 23), st.integers(1, 40), st.integers(0, 2**32 - 1), sizes)
def test_int8_rows(count: int, rows: int, sixteenths: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (rows, 16 * sixteenths), dtype=np.int8)
    scales = random.uniform(0.1, 2, rows).astype(np.float32)
    x = tokens(random, count, 16 * sixteenths, size)
    found = multiplied(RowMajor(Rows(codes, scales), NO_BIAS), x, threads=2)
    exact = x.astype(np.float64) @ codes.T.astype(np.float64) * scales
    allowed = half_units(x, int8_rows.BLOCK, 2**15 - 1) @ np.abs(codes.T.astype(np.float64)) * scales
    assert found.shape == (count, rows) and (np.abs(found - exact) <= allowed + 1e-30).all()


@settings(max_examples=60)
@given(st.integers(1, 11), st.integers(1, 400), st.integers(1, 4), st.integers(0, 2**32 - 1), sizes)
def test_int8_neurons(count: int, pairs: int, sixteenths: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (2 * pairs, 16 * sixteenths), dtype=np.int8)
    scales = random.uniform(0.1, 2, 16 * sixteenths).astype(np.float32)
    x = tokens(random, count, 2 * pairs, size)
    down = ByNeuron(codes, np.empty((2 * pairs, 0), np.float32), scales)
    found = multiplied(NeuronMajor(down, NO_BIAS), x, threads=2)
    exact = x.astype(np.float64) @ codes.astype(np.float64) * scales
    allowed = half_units(x, int8_rows.BLOCK, 2**15 - 1) @ np.abs(codes.astype(np.float64)) * scales
    assert found.shape == (count, len(scales)) and (np.abs(found - exact) <= allowed + 1e-30).all()


@settings(max_examples=60)
@given(st.integers(1, 11), st.integers(2, 23), st.integers(1, 300), st.integers(0, 2**32 - 1), sizes)
def test_q4_rows_of_any_width(count: int, rows: int, columns: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    stored = encode(torch.from_numpy(random.standard_normal((rows, columns)).astype(np.float32)), "q4")
    values = format_of("q4").decode_rows(stored.codes, stored.scales, columns).double().numpy()
    x = tokens(random, count, columns, size)
    found = multiplied(RowMajor(stored, NO_BIAS), x, threads=2)
    # What a code and a minimum give apart may cancel in the value that they stand for.
    largest = np.abs(values).max(axis=1) * 3 + 1e-6
    allowed = half_units(x, int8_rows.BLOCK, 2**15 - 1).sum(axis=1)[:, None] * largest
    assert found.shape == (count, rows) and (np.abs(found - x @ values.T) <= allowed + 1e-30).all()


@pytest.mark.parametrize("precision", FORMATS)
def test_several_tokens_are_multiplied_as_each_alone_is(precision: str) -> None:
    weight, x = torch.randn(34, 64), torch.randn(7, 64)
    bias = np.linspace(-1, 1, 34, dtype=np.float32)
    rows = RowMajor(encode(weight, precision), bias)
    down = NeuronMajor(encode_by_neuron(weight[:32].T.contiguous(), precision), NO_BIAS)  # 32 neurons, 64 outputs
    # One token is rounded otherwise: to 8 bits where rows of q4 are multiplied, not at all where down is.
    for matrix, input, off in ((rows, x, 0.2 if precision == "q4" else 1e-5), (down, x[:, :32], 1e-3)):
        with cores(1):
            each = torch.stack([matrix(token) for token in input])
        together = compiled(matrix, input.reshape(7, 1, -1))
        assert (together is not None) == (matrix.has_matmul)
        if together is not None:
            assert torch.allclose(together.reshape(7, -1), each, rtol=0, atol=off)
    assert rows.has_matmul == (precision in ("int8", "q4"))


def test_threads_share_out_whatever_there_is() -> None:
    """More threads than rows, and outputs that are no multiple of the threads."""
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (48, 48), dtype=np.int8)
    ones, x = np.ones(48, np.float32), tokens(random, 5, 48, 1.0)
    for matrix in (
        RowMajor(Rows(codes[:3], ones[:3]), NO_BIAS),
        NeuronMajor(ByNeuron(codes, np.empty((48, 0), np.float32), ones), NO_BIAS),
    ):
        assert np.array_equal(multiplied(matrix, x, threads=1), multiplied(matrix, x, threads=2))


def test_the_largest_sums_fit() -> None:
    codes, x = np.full((1024, 1024), -127, np.int8), np.full((4, 1024), -3.0, np.float32)
    ones = np.ones(1024, np.float32)
    rows, down = Rows(codes, ones), ByNeuron(codes, np.empty((1024, 0), np.float32), ones)
    for matrix in (RowMajor(rows, NO_BIAS), NeuronMajor(down, NO_BIAS)):
        assert np.allclose(multiplied(matrix, x, threads=2), 127 * 3.0 * 1024, rtol=1e-5)


def test_sizes_without_a_product_are_torchs() -> None:
    odd = encode(torch.randn(8, 33), "int8")
    assert not RowMajor(odd, NO_BIAS).has_matmul
    assert compiled(RowMajor(odd, NO_BIAS), torch.randn(3, 33)) is None
    assert not RowMajor(encode(torch.randn(1, 32), "q4"), NO_BIAS).has_matmul
    even = RowMajor(encode(torch.randn(8, 32), "int8"), NO_BIAS)
    assert compiled(even, torch.randn(3, 32, requires_grad=True)) is None
    assert compiled(RowMajor(encode(torch.randn(8, 32), "bfloat16"), NO_BIAS), torch.empty(2, 0, 32)) is None
    nothing = compiled(even, torch.empty(2, 0, 32))
    assert nothing is not None and nothing.shape == (2, 0, 8)
