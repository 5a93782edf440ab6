"""The int8 kernels against float64, and what they read of bitsandbytes' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from gpu_blocks import check
from gpu_device import DEVICE, DTYPES, ON_A_CARD
from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.kernels.activations import GELU_ERF, GELU_TANH, RELU, SILU
from tda_demo.kernels.gpu.blocks import ActiveBuffer, Tiles
from tda_demo.kernels.gpu.int8 import Int8Matrices, Int8Rows, rows_of
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.projection import Projection

pytestmark = [*ON_A_CARD, pytest.mark.filterwarnings("ignore:overflow encountered in exp")]
SMALL = Tiles(rows=4, programs=3, down_rows=4, down_columns=32, splits=2)


def codes(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=DEVICE)


def scales(number: int) -> torch.Tensor:
    return (torch.rand(number, device=DEVICE) + 0.1) / 127


@given(
    width=st.integers(1, 70),
    d_ff=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    activation=st.sampled_from([SILU, GELU_TANH, GELU_ERF, RELU]),
    glu=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15, deadline=None)
def test_active_sets_of_any_shape(
    width: int, d_ff: int, share: float, activation: int, glu: bool, bias: bool, dtype: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    gate = Int8Rows(codes(d_ff, width), scales(d_ff)) if glu else None
    up = Int8Rows(codes(d_ff, width), scales(d_ff))
    gate_bias = torch.randn(d_ff, device=DEVICE) if glu and bias else None
    up_bias, down_bias = (torch.randn(size, device=DEVICE) if bias else None for size in (d_ff, width))
    int8 = Int8Matrices(gate, up, codes(d_ff, width), scales(width), gate_bias, up_bias, down_bias, activation)
    indices = torch.randperm(d_ff)[: round(share * d_ff)].sort().values.to(DEVICE)
    active = ActiveBuffer.full(d_ff, DEVICE)
    active.set(indices)
    active.chosen[len(indices) :] = 2**30
    x = (torch.randn(1, width) / width**0.5).to(DEVICE, dtype)
    check(int8, int8.decode(), x, indices, active, SMALL)
    if share == 1:
        check(int8, int8.decode(), x, indices, None, SMALL)


def linear(outputs: int, inputs: int, bias: bool = False) -> Linear8bitLt:
    made = Linear8bitLt(inputs, outputs, bias=bias, has_fp16_weights=False)
    made.weight.data = torch.randn(outputs, inputs) * torch.rand(outputs, 1)
    return made.requires_grad_(False).to(DEVICE)


@pytest.mark.parametrize("fused", [False, True])
def test_blocks_of_bitsandbytes_modules_keep_their_codes(fused: bool) -> None:
    torch.manual_seed(0)
    gate = None if fused else linear(20, 64, bias=True)
    up, down = linear(40 if fused else 20, 64, bias=True), linear(64, 20)
    projections = Projection.parts(up, [20, 20]) if gate is None else (Projection.whole(gate), Projection.whole(up))
    block = FeedForward(0, *projections, down, d_ff=20)
    int8 = Int8Matrices.of(block, SILU)
    assert torch.equal(int8.down.t(), down.weight.data)
    torch.testing.assert_close(int8.decode().down.t(), block.output_weight())
    stacked = rows_of(up).decode() if gate is None else torch.cat([rows_of(each).decode() for each in (gate, up)])
    assert int8.gate is not None
    torch.testing.assert_close(torch.cat([int8.gate.decode(), int8.up.decode()]), stacked)
    assert int8.neuron_bytes == 3 * 64 + 2 * 4 + sum(each[:1].nbytes for each in (int8.gate_bias, int8.up_bias))
    check(int8, int8.decode(), torch.randn(1, 64, device=DEVICE), torch.arange(20, device=DEVICE), None, SMALL)
