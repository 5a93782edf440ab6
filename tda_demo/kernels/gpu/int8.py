"""Feed-forward blocks whose weights bitsandbytes holds in LLM.int8 (arXiv 2208.07339), all neurons or an active set.

A row of codes has one scale: its largest magnitude over 127. ``gate`` and ``up`` are read where they lie, a neuron a
row. In ``down`` a neuron is a column and a scale belongs to an output, so its codes are copied by neuron as they are
and the scales are applied to the finished sums: no weight changes.

bitsandbytes' own product rounds activations to int8 row by row and takes columns of x that hold a magnitude of 6 or
more in 16 bits. Here x is not rounded and nothing is split off: products of x in its own precision and the same codes,
summed in float32. So results differ from bitsandbytes' by its rounding of activations, and are nearer to what the
stored weights say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...model.feedforward import FeedForward
from .blocks import ActiveBuffer, Scratch, Tiles, add_partials
from .matrices import Matrices, launch


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """``codes`` int8 [rows, columns] and ``scale`` float32 [rows]: a weight is their product."""

    codes: torch.Tensor
    scale: torch.Tensor

    def decode(self) -> torch.Tensor:
        """float32 [rows, columns]."""
        return self.codes.float() * self.scale[:, None]


@dataclass(frozen=True, eq=False)
class Int8Matrices:
    """A block by neuron: ``gate`` (None in plain blocks) and ``up``; ``down`` int8 [d_ff, d], ``down_scale`` [d]."""

    gate: Int8Rows | None
    up: Int8Rows
    down: torch.Tensor
    down_scale: torch.Tensor
    gate_bias: torch.Tensor | None
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    activation: int

    @classmethod
    def of(cls, block: FeedForward, activation: int) -> Int8Matrices:
        """From the Linear8bitLt modules of ``block``, which stay as they are; the codes of down are copied."""
        down = rows_of(block.down)
        rest = (down.codes.t().contiguous(), down.scale)
        gate = None if block.gate is None else rows_of(block.gate.linear, block.gate.rows)
        gate_bias = None if block.gate is None else block.gate.bias
        up = rows_of(block.up.linear, block.up.rows)
        return cls(gate, up, *rest, gate_bias, block.up.bias, block.down.bias, activation)

    @property
    def d_ff(self) -> int:
        return len(self.down)

    @property
    def width(self) -> int:
        return self.down.shape[1]

    @property
    def device(self) -> torch.device:
        return self.down.device

    @property
    def neuron_bytes(self) -> int:
        stored = [rows for rows in (self.gate, self.up) if rows is not None]
        tensors = [tensor for rows in stored for tensor in (rows.codes, rows.scale)]
        biases = [bias for bias in (self.gate_bias, self.up_bias) if bias is not None]
        return sum(tensor[:1].nbytes for tensor in (*tensors, self.down, *biases))

    @property
    def output_bytes(self) -> int:
        return self.down_scale.nbytes + (0 if self.down_bias is None else self.down_bias.nbytes)

    def decode(self) -> Matrices:
        """The values that are stored, in float32."""
        gate = None if self.gate is None else self.gate.decode()
        biases = (self.gate_bias, self.up_bias, self.down_bias)
        return Matrices(gate, self.up.decode(), self.down.float() * self.down_scale, *biases, self.activation)

    def run(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> torch.Tensor:
        """See ``blocks.BlockMatrices``."""
        gate, gate_scale = (None, None) if self.gate is None else (self.gate.codes, self.gate.scale)
        launch(self, gate, self.up.codes, gate_scale, self.up.scale, x, active, scratch, tiles)
        return add_partials(scratch, self.down_bias, self.down_scale)


def is_int8(linear: nn.Linear) -> bool:
    """Whether bitsandbytes holds ``linear`` in LLM.int8."""
    return linear.weight.dtype == torch.int8


def largest_of(linear: nn.Linear) -> torch.Tensor:
    """float32 [rows], the largest magnitude of each row; the first forward pass moves it from the weight."""
    holder: Any = linear
    largest = getattr(holder.weight, "SCB", None)
    return holder.state.SCB if largest is None else largest


def rows_of(linear: nn.Linear, rows: slice = slice(None)) -> Int8Rows:
    """The codes of a Linear8bitLt, or of some of its ``rows``, a row an output, as a view."""
    return Int8Rows(linear.weight.data[rows], largest_of(linear)[rows].float() / 127)
