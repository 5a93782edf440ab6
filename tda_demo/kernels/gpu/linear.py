"""A linear layer of one token on a GPU in one launch, from plain or NF4 rows; what attention's projections are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .blocks import launch_options, next_power_of_two, triton_programs
from .nf4 import Nf4Rows, nf4_linear


@dataclass(frozen=True)
class LinearTiles:
    """``rows`` a program has, a power of two, and its ``warps``."""

    rows: int = 2
    warps: int = 4


def linear(
    x: torch.Tensor, weight: torch.Tensor | Nf4Rows, bias: torch.Tensor | None, tiles: LinearTiles
) -> torch.Tensor:
    """``weight`` [outputs, d] times contiguous ``x`` [..., d] of one token, plus ``bias``: [..., outputs] in x's dtype.

    Sums are float32.
    """
    outputs = len(weight.codes) if isinstance(weight, Nf4Rows) else len(weight)
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    if isinstance(weight, Nf4Rows):
        return nf4_linear(x, weight, bias, out, tiles.rows, tiles.warps)
    width = weight.shape[1]
    triton_programs("programs").linear_program[(-(-outputs // tiles.rows),)](
        x,
        weight,
        bias,
        out,
        OUTPUTS=outputs,
        D=width,
        PADDED=next_power_of_two(width),
        BIAS=bias is not None,
        ROWS=tiles.rows,
        num_warps=tiles.warps,
        **launch_options(x.device),
    )
    return out
