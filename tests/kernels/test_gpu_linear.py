"""A linear layer of one token on a GPU against float64, from plain rows and from NF4 ones."""

from __future__ import annotations

import pytest
import torch
from gpu_device import DEVICE, DTYPES, ON_A_CARD, TOLERANCE, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.kernels.gpu.linear import LinearTiles, linear
from tda_demo.kernels.gpu.nf4 import quantise

pytestmark = ON_A_CARD


@given(
    outputs=st.integers(1, 40),
    width=st.integers(1, 200),
    rows=st.sampled_from([1, 4]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=10, deadline=None)
def test_plain_rows_of_any_shape(
    outputs: int, width: int, rows: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(outputs, width).to(DEVICE, dtype)
    x, added = torch.randn(1, 1, width).to(DEVICE, dtype), torch.randn(outputs).to(DEVICE, dtype)
    out = linear(x, weight, added if bias else None, LinearTiles(rows, 1))
    expected = x.double() @ weight.double().T + (added.double() if bias else 0)
    assert out.shape == (1, 1, outputs) and out.dtype == dtype
    assert relative_error(out, expected) < TOLERANCE[dtype]


@given(
    outputs=st.integers(1, 20),
    blocks=st.sampled_from([1, 3, 5, 70]),  # more than 64 are taken in pieces
    rows=st.sampled_from([1, 4]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=10, deadline=None)
def test_nf4_rows_of_any_shape(outputs: int, blocks: int, rows: int, bias: bool, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    weight = quantise(torch.randn(outputs, 64 * blocks).to(DEVICE))
    x, added = torch.randn(1, 64 * blocks).to(DEVICE, dtype), torch.randn(outputs).to(DEVICE, dtype)
    out = linear(x, weight, added if bias else None, LinearTiles(rows, 1))
    expected = x.double() @ weight.decode().double().T + (added.double() if bias else 0)
    assert relative_error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("tiles", [LinearTiles(), LinearTiles(1, 4), LinearTiles(4, 8)])
def test_equal_inputs_give_equal_bits(tiles: LinearTiles) -> None:
    x, weight = torch.randn(1, 512, device=DEVICE), torch.randn(33, 512, device=DEVICE)
    assert torch.equal(linear(x, weight, None, tiles), linear(x, weight, None, tiles))
