"""Storage formats against torch's own rounding, bitsandbytes, and the definitions of their scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.kernels.formats import FORMATS, encode, encode_by_neuron, round_by_neuron, round_by_row
from tda_demo.kernels.nf4 import LEVELS, ONE
from tda_demo.support.errors import UserError


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_float32_is_exact_and_bfloat16_is_torchs(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    assert torch.equal(round_by_row(weight, "float32"), weight)
    assert torch.equal(round_by_row(weight, "bfloat16"), weight.bfloat16().float())


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_int8_is_within_half_a_step_of_its_row(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    half_a_step = weight.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((round_by_row(weight, "int8") - weight).abs() <= half_a_step * 1.0001).all()


@pytest.mark.parametrize("precision", FORMATS)
def test_rounded_values_keep_their_codes(precision: str) -> None:
    weight = matrix(7, 50, 0)
    assert np.array_equal(encode(round_by_row(weight, precision), precision).codes, encode(weight, precision).codes)
    by_neuron = encode_by_neuron(weight, precision).codes
    assert np.array_equal(encode_by_neuron(round_by_neuron(weight, precision), precision).codes, by_neuron)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_nf4_is_that_of_bitsandbytes_to_the_rounding_of_its_levels(rows: int, blocks: int, seed: int) -> None:
    weight = matrix(rows, 64 * blocks, seed)
    theirs = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    largest = weight.reshape(rows, blocks, 64).abs().amax(dim=2).repeat_interleave(64, dim=1)
    ours = round_by_row(weight, "nf4")
    same_level = (ours - theirs).abs() <= 3.1e-5 * largest
    on_the_border = ((ours - weight).abs() - (theirs - weight).abs()).abs() <= 6.2e-5 * largest
    assert (same_level | on_the_border).all() and same_level.float().mean() > 0.98


@given(st.integers(1, 9), st.integers(1, 150), st.integers(0, 99))
def test_nf4_takes_the_nearest_level_also_in_a_last_block_that_is_not_full(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    levels = torch.from_numpy(LEVELS / ONE)
    found = round_by_row(weight, "nf4").double()
    for start in range(0, columns, 64):
        block = weight[:, start : start + 64].double()
        possible = block.abs().amax(dim=1)[:, None, None] * levels
        best = (possible - block[:, :, None]).abs().amin(dim=2)
        assert torch.allclose((found[:, start : start + 64] - block).abs(), best, atol=1e-6)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_matrix_of_zeros_stays_zero(precision: str) -> None:
    zeros = torch.zeros(2, 5)
    assert torch.equal(round_by_row(zeros, precision), zeros) and torch.equal(round_by_neuron(zeros, precision), zeros)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_neuron_is_a_row_of_codes(precision: str) -> None:
    down = matrix(70, 9, 1)
    stored = encode_by_neuron(down, precision)
    few = stored.take(np.array([2, 7]))
    assert len(stored.codes) == 9 and np.array_equal(few.codes[1], stored.codes[7])
    assert np.array_equal(few.block_scales, stored.block_scales[[2, 7]])
    assert few.output_scales.shape == (70,)


def test_bytes_are_those_of_codes_and_of_scales_where_there_are_any() -> None:
    sizes = {precision: encode(matrix(4, 128, 0), precision).nbytes for precision in FORMATS}
    assert sizes == {"float32": 2048, "bfloat16": 1024, "int8": 512 + 16, "nf4": 256 + 32, "q4": 320}
    by_neuron = {precision: encode_by_neuron(matrix(128, 4, 0), precision).nbytes for precision in FORMATS}
    assert by_neuron == {"float32": 2048, "bfloat16": 1024, "int8": 512 + 512, "nf4": 256 + 32, "q4": 1024}
    for precision, form in FORMATS.items():
        for columns in (1, 63, 64, 65, 128):
            assert form.row_bytes(columns) == encode(matrix(1, columns, 0), precision).nbytes


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="no format 'int3'"):
        encode(torch.zeros(1, 1), "int3")
