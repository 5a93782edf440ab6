"""Neurons computed one by one, as records, wherever they lie, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from tda_demo.kernels.activations import SILU
from tda_demo.kernels.cpu import int8_rows
from tda_demo.kernels.cpu.layer import Neurons
from tda_demo.kernels.cpu.processor import HAS_SHUFFLE
from tda_demo.kernels.cpu.scattered import compute
from tda_demo.kernels.formats import encode, encode_by_neuron, round_by_neuron, round_by_row


@njit
def _compute(neurons, x, chosen, first, last, up, activations, out):
    compute(neurons, x, chosen, first, last, SILU, up, activations, out)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 150), d_ff=st.integers(1, 30), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_any_neurons_of_any_width(precision: str, width: int, d_ff: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    gate, up, down = (
        torch.tensor(random.standard_normal(shape), dtype=torch.float32)
        for shape in ((d_ff, width), (d_ff, width), (width, d_ff))
    )
    gate_bias, up_bias = (random.standard_normal(d_ff).astype(np.float32) for _ in range(2))
    rows, columns = [encode(part, precision) for part in (gate, up)], encode_by_neuron(down, precision)
    nothing = np.empty((d_ff, 0), columns.codes.dtype)
    neurons = Neurons(
        np.stack([rows[0].codes, rows[1].codes, columns.codes], axis=1),
        nothing,
        nothing,
        rows[0].scales,
        rows[1].scales,
        columns.block_scales,
        gate_bias,
        up_bias,
    )
    x = random.standard_normal(width).astype(np.float32)
    kept = np.flatnonzero(random.random(d_ff) < share)
    first = int(random.integers(0, 3))  # what lies before is left alone
    last = first + len(kept)
    chosen = np.concatenate([np.full(first, -1), kept, np.full(3, -1)])
    scratch, activations, out = (np.full(size, 7, np.float32) for size in (last, last, width))
    _compute(neurons, x, chosen, first, last, scratch, activations, out)

    if precision == "int8" and HAS_SHUFFLE:
        codes, units = int8_rows.quantised(x)
        x = (codes * np.repeat(units.astype(np.float64), int8_rows.BLOCK)[:width]).astype(np.float32)
    wide = [round_by_row(gate, precision), round_by_row(up, precision), round_by_neuron(down, precision)]
    g, u, d = (part.double().numpy() for part in wide)
    linear = g @ x + gate_bias
    expected = linear / (1 + np.exp(-linear)) * (u @ x + up_bias)
    np.testing.assert_allclose(activations[first:], expected[kept], rtol=1e-4, atol=1e-4)
    assert (activations[:first] == 7).all()
    np.testing.assert_allclose(out * columns.output_scales, d[:, kept] @ expected[kept], rtol=1e-4, atol=1e-3)
