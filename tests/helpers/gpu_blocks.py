"""Blocks of random weights on a GPU or in Triton's interpreter, and their kernels against float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gpu_device import DEVICE, TOLERANCE, relative_error

from tda_demo.kernels.activations import GELU_ERF, GELU_TANH, RELU, SILU
from tda_demo.kernels.gpu.blocks import ActiveBuffer, BlockMatrices, Scratch, Tiles, feed_forward
from tda_demo.kernels.gpu.matrices import Matrices

SMALL = Tiles(rows=4, programs=3, down_rows=4, down_columns=16, splits=4)
FUNCTIONS = {
    SILU: F.silu,
    GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    GELU_ERF: F.gelu,
    RELU: F.relu,
}


def random_matrices(d: int, d_ff: int, dtype: torch.dtype, activation: int, glu: bool, bias: bool) -> Matrices:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(DEVICE, dtype)

    return Matrices(
        gate=normal(d_ff, d) if glu else None,
        up=normal(d_ff, d),
        down=normal(d_ff, d),
        gate_bias=normal(d_ff) if glu and bias else None,
        up_bias=normal(d_ff) if bias else None,
        down_bias=normal(d) if bias else None,
        activation=activation,
    )


def reference(matrices: Matrices, x: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 activations [1, k] of the neurons ``indices`` and the block's output [batch, d] from them alone."""

    def product(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        added = 0 if bias is None else bias[indices].double()
        return x.double() @ weight[indices].double().T + added

    value = product(matrices.up, matrices.up_bias)
    function = FUNCTIONS[matrices.activation]
    gated = function(value) if matrices.gate is None else function(product(matrices.gate, matrices.gate_bias)) * value
    bias = 0 if matrices.down_bias is None else matrices.down_bias.double()
    return gated, gated @ matrices.down[indices].double() + bias


def check(
    weights: BlockMatrices,
    stored: Matrices,
    x: torch.Tensor,
    indices: torch.Tensor,
    active: ActiveBuffer | None,
    tiles: Tiles = SMALL,
) -> None:
    """The kernel over ``weights`` against float64 over ``stored``, which is what they hold, at neurons ``indices``."""
    dtype = x.dtype
    scratch = Scratch.for_(weights, tiles, dtype)
    scratch.out.fill_(torch.nan)  # what is not written shows
    scratch.partial.fill_(torch.nan)
    activations, expected = reference(stored, x, indices)
    out = feed_forward(weights, x, active, scratch, tiles)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    assert relative_error(scratch.activations[:, : len(indices)], activations) < 1e-5
    again = feed_forward(weights, x, active, Scratch.for_(weights, tiles, dtype), tiles)
    assert torch.equal(out, again)  # the order of sums is fixed
