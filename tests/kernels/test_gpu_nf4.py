"""The NF4 kernels against bitsandbytes' own dequantisation and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit
from bitsandbytes.nn import Linear4bit
from gpu_blocks import check, random_matrices
from gpu_device import DEVICE, DTYPES, ON_A_CARD
from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.kernels.activations import GELU_ERF, GELU_TANH, RELU, SILU
from tda_demo.kernels.gpu.blocks import ActiveBuffer, Tiles
from tda_demo.kernels.gpu.nf4 import Nf4Matrices, quantise, requantise, rows_of, table
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.projection import Projection
from tda_demo.support.errors import UserError

pytestmark = [*ON_A_CARD, pytest.mark.filterwarnings("ignore:overflow encountered in exp")]
SMALL = Tiles(rows=4, programs=3, down_rows=4, down_columns=64, splits=2)


def linear(outputs: int, inputs: int, bias: bool = False, **kind: Any) -> Linear4bit:
    made = Linear4bit(inputs, outputs, bias=bias, **{"quant_type": "nf4", "compress_statistics": False} | kind)
    made.weight.data = torch.randn(outputs, inputs) * torch.rand(outputs, 1)
    if bias:
        made.bias.data = torch.randn(outputs)
    return made.requires_grad_(False).to(DEVICE)


def values(each: Linear4bit) -> torch.Tensor:
    state = each.weight.quant_state
    assert state is not None
    return dequantize_4bit(each.weight.data, state)


@pytest.mark.parametrize("nested", [False, True])
def test_rows_unpack_to_what_bitsandbytes_gives(nested: bool) -> None:
    torch.manual_seed(0)
    layer = linear(6, 128, compress_statistics=nested)
    torch.testing.assert_close(rows_of(layer).decode(), values(layer), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_scales_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert torch.equal(table(DEVICE), get_4bit_type("nf4", device=DEVICE))
    matrix = torch.randn(5000, 128).to(DEVICE, dtype)
    rows, (codes, state) = quantise(matrix), quantize_4bit(matrix.float(), blocksize=64, quant_type="nf4")
    assert torch.equal(rows.codes, codes.view(5000, 64)) and torch.equal(rows.absmax, state.absmax.view(5000, 2))
    assert (quantise(torch.zeros(2, 64, device=DEVICE)).decode() == 0).all()


def test_requantising_tells_its_error() -> None:
    torch.manual_seed(0)
    layer = linear(64, 10)
    rows, change = requantise(layer)
    error = (rows.decode().T - values(layer)).double()
    assert change.largest == pytest.approx(float(error.abs().max()), rel=1e-5)
    assert change.rms == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
    assert change.rms_weight == pytest.approx(float(values(layer).double().square().mean().sqrt()), rel=1e-4)
    assert 0 < change.rms < 0.15 * change.rms_weight


def test_requantising_changes_nothing_where_the_values_lie_on_the_new_grid() -> None:
    layer = linear(64, 64)
    signs = torch.randn(64, 64).sign()
    again = Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=False)
    again.weight.data = signs
    _, change = requantise(again.requires_grad_(False).to(DEVICE))
    assert change.largest == 0
    assert requantise(layer)[1].largest > 0


@given(
    blocks=st.integers(1, 3),
    d_ff=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    activation=st.sampled_from([SILU, GELU_TANH, GELU_ERF, RELU]),
    glu=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=12, deadline=None)
def test_active_sets_of_any_shape(
    blocks: int,
    d_ff: int,
    share: float,
    activation: int,
    glu: bool,
    bias: bool,
    dtype: Any,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    plain = random_matrices(64 * blocks, d_ff, torch.float32, activation, glu, bias)
    gate = None if plain.gate is None else quantise(plain.gate)
    biases = (plain.gate_bias, plain.up_bias, plain.down_bias)
    nf4 = Nf4Matrices(gate, quantise(plain.up), quantise(plain.down), *biases, activation)
    indices = torch.randperm(d_ff)[: round(share * d_ff)].sort().values.to(DEVICE)
    active = ActiveBuffer.full(d_ff, DEVICE)
    active.set(indices)
    active.chosen[len(indices) :] = 2**30
    x = torch.randn(1, 64 * blocks).to(DEVICE, dtype)
    check(nf4, nf4.decode(), x, indices, active, SMALL)
    if share == 1:
        check(nf4, nf4.decode(), x, indices, None, SMALL)


@pytest.mark.parametrize("fused", [False, True])
def test_blocks_of_bitsandbytes_modules(fused: bool) -> None:
    torch.manual_seed(0)
    gate = None if fused else linear(20, 64, bias=True)
    up, down = linear(40 if fused else 20, 64, bias=True), linear(64, 20)
    projections = Projection.parts(up, [20, 20]) if gate is None else (Projection.whole(gate), Projection.whole(up))
    nf4, _ = Nf4Matrices.of(FeedForward(0, *projections, down, d_ff=20), SILU)
    stacked = values(up) if gate is None else torch.cat([values(gate), values(up)])
    assert nf4.gate is not None and nf4.gate_bias is not None and nf4.up_bias is not None
    torch.testing.assert_close(torch.cat([nf4.gate.decode(), nf4.up.decode()]), stacked)
    assert len(nf4.gate_bias) == len(nf4.up_bias) == nf4.d_ff == 20
    assert nf4.neuron_bytes == 3 * (32 + 4) + 2 * 4
    check(nf4, nf4.decode(), torch.randn(1, 64, device=DEVICE), torch.arange(20, device=DEVICE), None, SMALL)


@pytest.mark.parametrize("layer", [linear(64, 64, quant_type="fp4"), linear(4, 96)], ids=["fp4", "width"])
def test_other_formats_are_refused_in_one_sentence(layer: Linear4bit) -> None:
    with pytest.raises(UserError, match="bfloat16"):
        rows_of(layer)


def test_a_hidden_size_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="hidden size"):
        requantise(linear(40, 64))
