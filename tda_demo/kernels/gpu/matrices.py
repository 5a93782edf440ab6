"""Feed-forward blocks whose weights are plain matrices by neuron, in a float dtype, and their two launches.

Int8 codes by neuron (``int8``) are read by the same launches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...model.feedforward import FeedForward
from .blocks import (
    ActiveBuffer,
    BlockMatrices,
    Scratch,
    Tiles,
    add_partials,
    grid,
    launch_options,
    next_power_of_two,
    triton_programs,
)


class RowWeights(BlockMatrices, Protocol):
    """Matrices of which a neuron is a row in each matrix; ``down`` is [d_ff, d], the biases of gate and up [d_ff]."""

    @property
    def down(self) -> torch.Tensor: ...

    @property
    def gate_bias(self) -> torch.Tensor | None: ...

    @property
    def up_bias(self) -> torch.Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Matrices:
    """A block stored by neuron: ``gate`` (None in plain blocks), ``up`` and ``down`` [d_ff, d], all of one dtype.

    ``gate_bias`` and ``up_bias`` [d_ff] and ``down_bias`` [d] are None where the model has none.
    """

    gate: torch.Tensor | None
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor | None
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    activation: int

    @classmethod
    def of(cls, block: FeedForward, activation: int) -> Matrices:
        """Views of the weights of ``block``; its down projection is laid out by neuron first, in place."""
        gate, gate_bias = (None, None) if block.gate is None else (block.gate.weight, block.gate.bias)
        down = lay_out_by_neuron(block.down)
        return cls(gate, block.up.weight, down, gate_bias, block.up.bias, block.down.bias, activation)

    @property
    def d_ff(self) -> int:
        return self.up.shape[0]

    @property
    def width(self) -> int:
        return self.up.shape[1]

    @property
    def device(self) -> torch.device:
        return self.up.device

    @property
    def neuron_bytes(self) -> int:
        tensors = (self.gate, self.up, self.down, self.gate_bias, self.up_bias)
        return sum(tensor[:1].nbytes for tensor in tensors if tensor is not None)

    @property
    def output_bytes(self) -> int:
        return 0 if self.down_bias is None else self.down_bias.nbytes

    def take(self, indices: torch.Tensor) -> Matrices:
        """Packed copies of the neurons ``indices`` int64 [k]."""

        def rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.index_select(0, indices)

        return Matrices(
            rows(self.gate),
            self.up.index_select(0, indices),
            self.down.index_select(0, indices),
            rows(self.gate_bias),
            rows(self.up_bias),
            self.down_bias,
            self.activation,
        )

    def to(self, dtype: torch.dtype) -> Matrices:
        """Copies in ``dtype``."""

        def cast(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        return Matrices(
            cast(self.gate),
            self.up.to(dtype),
            self.down.to(dtype),
            cast(self.gate_bias),
            cast(self.up_bias),
            cast(self.down_bias),
            self.activation,
        )

    def run(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> torch.Tensor:
        """See ``blocks.BlockMatrices``."""
        launch(self, self.gate, self.up, None, None, x, active, scratch, tiles)
        return add_partials(scratch, self.down_bias)


def launch(
    weights: RowWeights,
    gate: torch.Tensor | None,
    up: torch.Tensor,
    gate_scale: torch.Tensor | None,
    up_scale: torch.Tensor | None,
    x: torch.Tensor,
    active: ActiveBuffer | None,
    scratch: Scratch,
    tiles: Tiles,
) -> None:
    """Writes ``activations`` and ``partial`` of ``scratch``; see ``blocks.feed_forward``.

    An element of the weights is a number, in whatever dtype, times its row's scale if it has one.
    """
    programs = triton_programs("programs")
    width = x.shape[1]
    shape: Any = {"D": width, "FF": weights.d_ff, "ALL": active is None, **launch_options(x.device)}
    chosen, count = (None, None) if active is None else (active.chosen, active.count)
    programs.neurons_program[(grid(weights.d_ff, tiles),)](
        x,
        gate,
        up,
        gate_scale,
        up_scale,
        weights.gate_bias,
        weights.up_bias,
        chosen,
        count,
        scratch.activations,
        **shape,
        PADDED=next_power_of_two(width),
        GLU=gate is not None,
        SCALED=up_scale is not None,
        GATE_BIAS=weights.gate_bias is not None,
        UP_BIAS=weights.up_bias is not None,
        KIND=weights.activation,
        ROWS=tiles.rows,
        num_warps=tiles.warps,
    )
    programs.down_program[(tiles.splits, -(-width // tiles.down_columns))](
        scratch.activations,
        weights.down,
        chosen,
        count,
        scratch.partial,
        **shape,
        ROWS=tiles.down_rows,
        COLUMNS=tiles.down_columns,
        num_warps=tiles.down_warps,
    )


def lay_out_by_neuron(linear: nn.Linear) -> torch.Tensor:
    """The weight of a down projection as contiguous [d_ff, d].

    The linear keeps a transposed view of the same memory, so the model is as large as before; its numbers are the same.
    """
    weight = linear.weight.detach()
    if not weight.t().is_contiguous():
        weight = weight.t().contiguous().t()
        linear.weight.data = weight
    return weight.t()
