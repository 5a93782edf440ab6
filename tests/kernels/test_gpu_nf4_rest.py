"""The kernels of blocks whose active neurons are exact and whose others come from an NF4 copy, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gpu_blocks import random_matrices, reference
from gpu_device import DEVICE, DTYPES, ON_A_CARD, TOLERANCE, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.kernels.activations import GELU_ERF, GELU_TANH, RELU, SILU
from tda_demo.kernels.gpu.blocks import ActiveBuffer, Scratch, Tiles, feed_forward
from tda_demo.kernels.gpu.matrices import Matrices
from tda_demo.kernels.gpu.nf4 import Nf4Matrices, quantise
from tda_demo.kernels.gpu.rest import MatricesWithRest

pytestmark = [*ON_A_CARD, pytest.mark.filterwarnings("ignore:overflow encountered in exp")]
SMALL = Tiles(rows=4, programs=3, down_rows=4, down_columns=64, splits=2)


@given(
    blocks=st.integers(1, 3),
    d_ff=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    activation=st.sampled_from([SILU, GELU_TANH, GELU_ERF, RELU]),
    glu=st.booleans(),
    bias=st.booleans(),
    programs=st.sampled_from([0, 3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15, deadline=None)
def test_active_sets_of_any_shape(
    blocks: int,
    d_ff: int,
    share: float,
    activation: int,
    glu: bool,
    bias: bool,
    programs: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    exact = random_matrices(64 * blocks, d_ff, dtype, activation, glu, bias)
    weights = copied(exact)
    order = torch.randperm(d_ff, device=DEVICE)
    active, left_out = (part.sort().values for part in order.tensor_split([round(share * d_ff)]))
    tiles = dataclasses.replace(SMALL, programs=programs)
    check(weights, torch.randn(1, 64 * blocks).to(DEVICE, dtype), active, left_out, tiles)


def test_neurons_that_are_not_listed_contribute_nothing() -> None:
    torch.manual_seed(0)
    weights = copied(random_matrices(64, 20, torch.float32, SILU, glu=True, bias=True))
    x, nothing = torch.randn(1, 64, device=DEVICE), torch.arange(0, device=DEVICE)
    active = torch.arange(3, 11, device=DEVICE)
    check(weights, x, active, nothing, SMALL)
    buffer = ActiveBuffer.full(20, DEVICE)
    buffer.set(torch.arange(20, device=DEVICE), nothing)
    buffer.set(active)
    buffer.chosen[8:] = 2**30
    exact = feed_forward(weights.exact, x, buffer, Scratch.for_(weights, SMALL, x.dtype), SMALL)
    torch.testing.assert_close(feed_forward(weights, x, buffer, Scratch.for_(weights, SMALL, x.dtype), SMALL), exact)


def test_without_a_list_all_neurons_are_exact() -> None:
    torch.manual_seed(0)
    weights = copied(random_matrices(64, 20, torch.float32, RELU, glu=False, bias=True))
    x = torch.randn(1, 64, device=DEVICE)
    scratch = Scratch.for_(weights, SMALL, x.dtype)
    _, expected = reference(weights.exact, x, torch.arange(20, device=DEVICE))
    assert relative_error(feed_forward(weights, x, None, scratch, SMALL), expected) < 1e-5


def copied(exact: Matrices) -> MatricesWithRest:
    gate = None if exact.gate is None else quantise(exact.gate)
    biases = (exact.gate_bias, exact.up_bias, exact.down_bias)
    return MatricesWithRest(
        exact, Nf4Matrices(gate, quantise(exact.up), quantise(exact.down), *biases, exact.activation)
    )


def check(
    weights: MatricesWithRest, x: torch.Tensor, active: torch.Tensor, left_out: torch.Tensor, tiles: Tiles
) -> None:
    """The kernels against float64 on the exact values of ``active`` and the copy's of ``left_out``."""
    buffer = ActiveBuffer.full(weights.d_ff, DEVICE)
    buffer.set(active, left_out)
    listed = len(active) + len(left_out)
    buffer.chosen[listed:] = 2**30  # what lies behind must not be read as a neuron
    scratch = Scratch.for_(weights, tiles, x.dtype)
    scratch.out.fill_(torch.nan)  # what is not written shows
    scratch.partial.fill_(torch.nan)
    out = feed_forward(weights, x, buffer, scratch, tiles)
    exact, ours = reference(weights.exact, x, active)
    copies, theirs = reference(dataclasses.replace(weights.copy.decode(), down_bias=None), x, left_out)
    assert relative_error(out, ours + theirs) < TOLERANCE[x.dtype]
    assert relative_error(scratch.activations[:, :listed], torch.cat([exact, copies], dim=1)) < 1e-5
    again = feed_forward(weights, x, buffer, Scratch.for_(weights, tiles, x.dtype), tiles)
    assert torch.equal(out, again)  # the order of sums is fixed
