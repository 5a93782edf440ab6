"""The sketch: its codes, what they predict and where that errs, and the loops over nibbles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from tiny import tiny
from token_methods import LIKE_LLAMA, inputs, rule_of

from tda_demo.kernels import sketch
from tda_demo.kernels.cpu import nibbles
from tda_demo.model.configuration import activation_function


@pytest.fixture(autouse=True)
def thresholds(own_cache: Path) -> Path:
    return own_cache


def taken_apart(codes: np.ndarray, neuron: int, column: int) -> int:
    """A code of gate or up."""
    both = int(codes[neuron, column // 64 * 32 + column % 32])
    return both >> 4 if column % 64 >= 32 else both & 15


def taken_out(codes: np.ndarray, neuron: int, column: int) -> int:
    """A code of down."""
    both = int(codes[neuron // 16, column // 32, neuron % 16 // 2, column % 16 * 2 + neuron % 2])
    return both >> 4 if column % 32 >= 16 else both & 15


def values(part: Any, code: Callable[[np.ndarray, int, int], int], columns: int) -> torch.Tensor:
    """Float64 [neurons, columns], from codes taken out one by one."""
    rows = [[code(part.codes, neuron, column) for column in range(columns)] for neuron in range(len(part.scales))]
    return (torch.tensor(rows, dtype=torch.float64) - 7.5) * torch.from_numpy(part.scales).double()[:, None]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sketch_is_the_block_in_four_bits_and_knows_where_it_errs(family: str) -> None:
    """In float64, from codes taken out one by one."""
    lm = tiny(family)
    rule: Any = rule_of(lm, "sketch")
    for block, x, a in inputs(lm):
        copy = rule.copies[block.layer]
        x64 = x.double()
        unit = x64.abs().amax(dim=1, keepdim=True) / 127
        whole = (x64 / unit).round() * unit
        rows = [values(part, taken_apart, 32) for part in (copy.gate, copy.up) if part is not None]
        first = (whole @ rows[0].T) + (0 if copy.gate is not None or block.up.bias is None else block.up.bias.double())
        act = activation_function(lm.model)
        expected = act(first) * (whole @ rows[1].T) if copy.gate is not None else act(first)
        predicted, error = rule._predicted(block, x)
        torch.testing.assert_close(predicted.double(), expected, rtol=1e-3, atol=1e-4)

        down = values(copy.down, taken_out, 32)
        found = rule.rest(block, x, torch.zeros_like(a, dtype=torch.bool))
        wanted = expected @ down
        assert (found - wanted).norm() < 0.02 * wanted.norm()  # activations are rounded to int8 too
        true = a.double() @ block.down.weight.double().T
        assert (wanted - true).norm() < 0.3 * true.norm()

        each = a.double()[:, :, None] * block.down.weight.double().T - expected[:, :, None] * down
        assert np.corrcoef(each.norm(dim=2).flatten(), error.double().flatten())[0, 1] > 0.6
        assert 0.5 < error.square().mean().sqrt() / each.square().sum(dim=2).mean().sqrt() < 2


def test_the_sketch_counts_its_codes_scales_and_errors() -> None:
    rule = rule_of(tiny(LIKE_LLAMA), "sketch")
    # Per neuron: of gate and of up 32 codes in 64 filled up, four bits each, three scales, four kinds of error. Of down
    # 32 codes for each neuron, 70 of them in 80 filled up.
    assert rule.extra_bytes == 3 * (70 * (2 * 32 + 3 * 4 + 4 * 4) + 80 * 16)


@settings(max_examples=60, deadline=None)
@given(
    neurons=st.integers(1, 40),
    columns=st.integers(1, 70),
    begin=st.integers(0, 39),
    seed=st.integers(0, 2**31),
)
def test_nibbles_of_neurons_added_up(neurons: int, columns: int, begin: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.tensor(random.standard_normal((columns, neurons)), dtype=torch.float32)
    part = sketch.encode_columns(weight, random.uniform(0.5, 2, columns).astype(np.float32))
    activations = random.standard_normal(neurons).astype(np.float32)
    first = min(begin, neurons - 1)
    activations[:first] = 0
    expected = sketch.multiply_columns(part, torch.from_numpy(activations)[None])[0].numpy()
    codes = sketch.ungroup(part.codes)[:neurons, :columns].astype(np.float64)
    exact = activations @ ((codes - 7.5) * part.scales[:, None] * part.output_scales)
    np.testing.assert_allclose(expected, exact, atol=0.05 * np.abs(activations).sum())
    out = np.zeros(part.codes.shape[1] * 32, np.float32)
    weights, another = (activations * part.scales)[first:], part.codes[:1]
    nibbles.add_groups(np.concatenate([another, part.codes]), 1, 5, 5 + first, 5 + neurons, weights, out)
    np.testing.assert_allclose(out[:columns] * part.output_scales, expected, rtol=1e-4, atol=1e-4)
    whole = random.integers(-127, 128, 16).astype(np.int8)
    plain, paired = np.ones_like(out), np.ones_like(out)
    nibbles.plain_add_group(part.codes, 0, whole, np.float32(0.5), plain)
    _add_group(part.codes, 0, whole, np.float32(0.5), paired)
    np.testing.assert_array_equal(plain, paired)


@njit
def _add_group(codes, group, whole, unit, out):
    nibbles.add_group(codes, group, whole, unit, out)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_nibbles_times_a_vector_in_whole_numbers(rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.tensor(random.standard_normal((rows, columns)), dtype=torch.float32)
    part = sketch.encode(weight)
    x = np.zeros(part.codes.shape[1] * 2, np.int8)
    vector = random.standard_normal(columns).astype(np.float32)
    unit, total = nibbles.quantise(vector, x)
    assert total == x.sum(dtype=np.int64) and np.abs(x).max() == 127
    np.testing.assert_allclose(x[:columns] * unit, vector, atol=0.51 * float(unit))
    codes = sketch.unpack(part.codes).astype(np.int64)
    for row in range(rows):
        expected = int(codes[row] @ x)
        assert nibbles.plain_row_times(part.codes, row, x) == expected
        assert _row_times(part.codes, row, x) == expected
    found = sketch.multiply(part, torch.from_numpy(vector)[None])[0].numpy()
    np.testing.assert_allclose(
        found, (codes[:, :columns] - 7.5) @ x[:columns] * part.scales * unit, rtol=1e-3, atol=1e-3
    )


@njit
def _row_times(codes, row, x):
    return nibbles.row_times(codes, row, x)
