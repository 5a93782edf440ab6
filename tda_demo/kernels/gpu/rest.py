"""Feed-forward blocks whose active neurons are exact and whose others contribute what an NF4 copy of them says.

Three launches a block as ever (``blocks``): each of the first two does both halves (``rest_programs``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .blocks import ActiveBuffer, Scratch, Tiles, add_partials, grid, next_power_of_two, triton_programs
from .matrices import Matrices
from .nf4 import BLOCK, Nf4Matrices, blocks_of, decoding, table


@dataclass(frozen=True, eq=False)
class MatricesWithRest:
    """``exact`` weights in a float dtype and a ``copy`` of them; see ``blocks.BlockMatrices``."""

    exact: Matrices
    copy: Nf4Matrices

    @property
    def activation(self) -> int:
        return self.exact.activation

    @property
    def d_ff(self) -> int:
        return self.exact.d_ff

    @property
    def width(self) -> int:
        return self.exact.width

    @property
    def device(self) -> torch.device:
        return self.exact.device

    @property
    def neuron_bytes(self) -> int:
        return self.exact.neuron_bytes

    @property
    def output_bytes(self) -> int:
        return self.exact.output_bytes

    def run(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> torch.Tensor:
        """Both halves have the rows and columns of ``tiles``."""
        if active is None:
            return self.exact.run(x, None, scratch, tiles)
        programs = triton_programs("rest_programs")
        exact, copy = self.exact, self.copy
        width = x.shape[1]
        levels = table(x.device)
        columns = max(tiles.down_columns, BLOCK)
        programs.neurons_and_rest_program[(grid(self.d_ff + tiles.rows, tiles),)](
            x,
            exact.gate,
            exact.up,
            None if copy.gate is None else copy.gate.words,
            copy.up.words,
            None if copy.gate is None else copy.gate.absmax,
            copy.up.absmax,
            levels,
            exact.gate_bias,
            exact.up_bias,
            active.chosen,
            active.count,
            scratch.activations,
            D=width,
            FF=self.d_ff,
            PADDED=next_power_of_two(width),
            GLU=exact.gate is not None,
            GATE_BIAS=exact.gate_bias is not None,
            UP_BIAS=exact.up_bias is not None,
            KIND=exact.activation,
            ROWS=tiles.rows,
            BLOCKS=blocks_of(width),
            num_warps=tiles.warps,
            **decoding(x.device),
        )
        programs.down_and_rest_program[(tiles.splits, -(-width // columns))](
            scratch.activations,
            exact.down,
            copy.down.words,
            copy.down.absmax,
            levels,
            active.chosen,
            active.count,
            scratch.partial,
            D=width,
            FF=self.d_ff,
            ROWS=tiles.down_rows,
            BLOCKS=columns // BLOCK,
            num_warps=tiles.down_warps,
            **decoding(x.device),
        )
        return add_partials(scratch, exact.down_bias)
