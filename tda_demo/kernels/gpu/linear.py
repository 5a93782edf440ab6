"""A linear layer of one token on a GPU in one launch, from plain or NF4 rows; what attention's projections are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .blocks import next_power_of_two, overlap, triton_programs
from .nf4 import Nf4Rows, blocks_of, decoding, table


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
    packed = isinstance(weight, Nf4Rows)
    outputs, width = (len(weight.codes), weight.width) if packed else weight.shape
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    grid = (-(-outputs // tiles.rows),)
    shape = {"OUTPUTS": outputs, "D": width, "BIAS": bias is not None, "ROWS": tiles.rows}
    if packed:
        triton_programs("nf4_programs").nf4_linear_program[grid](
            x,
            weight.words,
            weight.absmax,
            table(x.device),
            bias,
            out,
            **shape,
            BLOCKS=blocks_of(width),
            num_warps=tiles.warps,
            **decoding(x.device),
        )
    else:
        triton_programs("programs").linear_program[grid](
            x,
            weight,
            bias,
            out,
            **shape,
            PADDED=next_power_of_two(width),
            num_warps=tiles.warps,
            **overlap(x.device),
        )
    return out
