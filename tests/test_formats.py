"""Storage formats against torch's own rounding and against the definition of int8 scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.errors import UserError
from tda_demo.kernels.formats import FORMATS, decode, encode, rounded


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_float32_is_exact_and_bfloat16_is_torchs(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    assert torch.equal(rounded(weight, "float32"), weight)
    assert torch.equal(rounded(weight, "bfloat16"), weight.bfloat16().float())


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_int8_is_within_half_a_step_of_its_row(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    half_a_step = weight.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((rounded(weight, "int8") - weight).abs() <= half_a_step * 1.0001).all()


@pytest.mark.parametrize("precision", FORMATS)
def test_rounded_values_keep_their_codes(precision: str) -> None:
    weight = matrix(7, 50, 0)
    once = encode(weight, precision)
    assert np.array_equal(encode(decode(once), precision).codes, once.codes)


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(rounded(torch.zeros(2, 5), "int8"), torch.zeros(2, 5))


def test_bytes_are_those_of_codes_and_of_scales_where_there_are_any() -> None:
    sizes = {precision: encode(matrix(4, 10, 0), precision).nbytes for precision in FORMATS}
    assert sizes == {"float32": 160, "bfloat16": 80, "int8": 40 + 16}


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="no format 'int3'"):
        encode(torch.zeros(1, 1), "int3")
