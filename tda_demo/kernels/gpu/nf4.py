"""Feed-forward blocks whose weights bitsandbytes holds in NF4 (arXiv 2305.14314), all neurons or an active set.

``gate`` and ``up`` are read as bitsandbytes packed them: a neuron is a row, and where d is a multiple of the block of
64 weights a row shares no block with another. Doubly quantised scales are decoded once to float32. In ``down`` a neuron
is a column, whose codes cannot be skipped: for active sets its weights are dequantised, transposed and quantised again
by neuron. Blocks then hold 64 outputs of one neuron, not 64 neurons of one output, so values change a little;
``Requantisation`` says by how much. All neurons are computed with ``down`` as it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from ...model.feedforward import FeedForward
from ...support.errors import UserError
from ..nf4 import BLOCK, VALUES
from .blocks import ActiveBuffer, Scratch, Tiles, add_partials, grid, launch_options, next_power_of_two, triton_programs
from .matrices import Matrices

_BLOCKS_AT_ONCE, _BLOCKS_A_WARP = 64, 32  # of a row, at most; more are further pieces
_ROWS_AT_ONCE = 4096  # to quantise: intermediate values take several times a matrix in bfloat16


@dataclass(frozen=True, eq=False)
class Nf4Rows:
    """``codes`` uint8 [rows, d / 2], two weights a byte, high half first; ``absmax`` float32 [rows, d / 64]."""

    codes: torch.Tensor
    absmax: torch.Tensor

    @property
    def width(self) -> int:
        return 2 * self.codes.shape[1]

    @property
    def words(self) -> torch.Tensor:
        """The codes as int32 [rows, d / 8], eight weights each."""
        return self.codes.view(torch.int32)

    @property
    def row_bytes(self) -> int:
        return self.codes[:1].nbytes + self.absmax[:1].nbytes

    def decode(self) -> torch.Tensor:
        """float32 [rows, d]."""
        halves = torch.stack([self.codes >> 4, self.codes & 15], dim=2).flatten(1)
        blocks = table(self.codes.device)[halves.int()].unflatten(1, (-1, BLOCK))
        return (blocks * self.absmax[:, :, None]).flatten(1)


@dataclass(frozen=True)
class Requantisation:
    """What quantising the transposed down projection again does to its values: ``largest`` and ``rms`` error.

    ``rms_weight`` is the root mean square of the values themselves, for scale.
    """

    largest: float
    rms: float
    rms_weight: float


@dataclass(frozen=True, eq=False)
class Nf4Matrices:
    """A block by neuron: ``gate`` (None in plain blocks), ``up`` and ``down``, d_ff rows; biases as in ``Matrices``.

    ``stored_down``, d rows of outputs, is down as bitsandbytes has it, which all neurons are computed with; None where
    64 does not divide d_ff, or where there is no such.
    """

    gate: Nf4Rows | None
    up: Nf4Rows
    down: Nf4Rows
    gate_bias: torch.Tensor | None
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    activation: int
    stored_down: Nf4Rows | None = None

    @classmethod
    def of(cls, block: FeedForward, activation: int) -> tuple[Nf4Matrices, Requantisation]:
        """From the Linear4bit modules of ``block``, which stay as they are.

        Raises:
            UserError: they are not NF4 in blocks of 64, or the hidden size is not a multiple of 64.
        """
        down, change = requantise(block.down)
        gate = None if block.gate is None else rows_of(block.gate.linear, block.gate.rows)
        gate_bias = None if block.gate is None else block.gate.bias
        up = rows_of(block.up.linear, block.up.rows)
        stored = None if block.d_ff % BLOCK else rows_of(block.down)
        return cls(gate, up, down, gate_bias, block.up.bias, block.down.bias, activation, stored), change

    @classmethod
    def copied_from(cls, block: FeedForward, activation: int) -> Nf4Matrices:
        """A copy of ``block``, whose weights have a float dtype and a hidden size that 64 divides."""
        gate, gate_bias = (None, None) if block.gate is None else (quantise(block.gate.weight), block.gate.bias)
        up, down = quantise(block.up.weight), quantise(block.down.weight.detach().t())
        return cls(gate, up, down, gate_bias, block.up.bias, block.down.bias, activation)

    @property
    def d_ff(self) -> int:
        return len(self.up.codes)

    @property
    def width(self) -> int:
        return self.up.width

    @property
    def device(self) -> torch.device:
        return self.up.codes.device

    @property
    def neuron_bytes(self) -> int:
        biases = sum(bias[:1].nbytes for bias in (self.gate_bias, self.up_bias) if bias is not None)
        return biases + sum(rows.row_bytes for rows in (self.gate, self.up, self.down) if rows is not None)

    @property
    def output_bytes(self) -> int:
        return 0 if self.down_bias is None else self.down_bias.nbytes

    def decode(self, *, stored: bool = False) -> Matrices:
        """The values in float32; ``stored``: as all neurons are computed, not as an active set is."""
        gate = None if self.gate is None else self.gate.decode()
        down = self.down.decode() if self.stored_down is None or not stored else self.stored_down.decode().t()
        biases = (self.gate_bias, self.up_bias, self.down_bias)
        return Matrices(gate, self.up.decode(), down, *biases, self.activation)

    def run(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> torch.Tensor:
        """See ``blocks.BlockMatrices``; ``tiles.down_columns`` counts weights, at least 64."""
        programs = triton_programs("nf4_programs")
        width = x.shape[1]
        shape: Any = {"D": width, "FF": self.d_ff, "ALL": active is None}
        chosen, count = (None, None) if active is None else (active.chosen, active.count)
        levels = table(x.device)
        programs.nf4_neurons_program[(grid(self.d_ff, tiles),)](
            x,
            None if self.gate is None else self.gate.words,
            self.up.words,
            None if self.gate is None else self.gate.absmax,
            self.up.absmax,
            levels,
            self.gate_bias,
            self.up_bias,
            chosen,
            count,
            scratch.activations,
            **shape,
            GLU=self.gate is not None,
            GATE_BIAS=self.gate_bias is not None,
            UP_BIAS=self.up_bias is not None,
            KIND=self.activation,
            ROWS=tiles.rows,
            BLOCKS=blocks_of(width),
            num_warps=tiles.warps,
            **decoding(x.device),
        )
        if active is None and self.stored_down is not None:
            rows, warps = tiles.down_rows, tiles.down_warps
            return nf4_linear(scratch.activations, self.stored_down, self.down_bias, scratch.out, rows, warps)
        programs.nf4_down_program[(tiles.splits, -(-width // tiles.down_columns))](
            scratch.activations,
            self.down.words,
            self.down.absmax,
            levels,
            chosen,
            count,
            scratch.partial,
            **shape,
            ROWS=tiles.down_rows,
            BLOCKS=tiles.down_columns // BLOCK,
            num_warps=tiles.down_warps,
            **decoding(x.device),
        )
        return add_partials(scratch, self.down_bias)


def nf4_linear(
    x: torch.Tensor, weight: Nf4Rows, bias: torch.Tensor | None, out: torch.Tensor, rows: int, warps: int
) -> torch.Tensor:
    """``out`` [..., outputs] = ``weight`` times contiguous ``x`` [..., d] of one token, plus ``bias``, in one launch.

    A program of ``warps`` has so many ``rows``, a power of two.
    """
    outputs, width = len(weight.codes), weight.width
    triton_programs("nf4_programs").nf4_linear_program[(-(-outputs // rows),)](
        x,
        weight.words,
        weight.absmax,
        table(x.device),
        bias,
        out,
        OUTPUTS=outputs,
        D=width,
        BIAS=bias is not None,
        ROWS=rows,
        BLOCKS=blocks_at_once(width, warps),
        num_warps=warps,
        **decoding(x.device),
    )
    return out


def is_nf4(linear: nn.Linear) -> bool:
    """Whether bitsandbytes holds ``linear`` in NF4 in blocks of 64."""
    state: Any = getattr(linear.weight, "quant_state", None)
    return state is not None and state.quant_type == "nf4" and state.blocksize == BLOCK


def rows_of(linear: nn.Linear, rows: slice = slice(None)) -> Nf4Rows:
    """The packed weight of a Linear4bit, or of some of its ``rows``, a row an output.

    Raises:
        UserError: see ``Nf4Matrices.of``.
    """
    from bitsandbytes.functional import dequantize_blockwise

    weight: Any = linear.weight
    state = weight.quant_state
    outputs, width = state.shape
    if state.quant_type != "nf4" or state.blocksize != BLOCK or width % BLOCK:
        raise UserError(
            f"The 4-bit kernels read NF4 in blocks of {BLOCK} with a width that {BLOCK} divides; this model has "
            f"{state.quant_type} in blocks of {state.blocksize} and width {width}: load it in bfloat16."
        )
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2).float() + state.offset
    codes = weight.data.view(torch.uint8).view(outputs, width // 2)
    return Nf4Rows(codes[rows], absmax.float().view(outputs, width // BLOCK)[rows])


def requantise(linear: nn.Linear) -> tuple[Nf4Rows, Requantisation]:
    """The weight of a down projection, a Linear4bit [d, d_ff], as NF4 rows by neuron, and what that changed.

    Raises:
        UserError: see ``Nf4Matrices.of``.
    """
    from bitsandbytes.functional import dequantize_4bit

    weight: Any = linear.weight
    if weight.quant_state.shape[0] % BLOCK:
        raise UserError(f"The 4-bit kernels need a hidden size that {BLOCK} divides: load this model in bfloat16.")
    before = dequantize_4bit(weight.data, weight.quant_state).t().float().contiguous()
    rows = quantise(before)
    error = rows.decode() - before
    root = before.numel() ** 0.5
    return rows, Requantisation(float(error.abs().max()), float(error.norm()) / root, float(before.norm()) / root)


def quantise(matrix: torch.Tensor) -> Nf4Rows:
    """``matrix`` [rows, d], d a multiple of 64, in NF4 as bitsandbytes has it, which need not be there.

    A weight takes the level nearest to it over its block's largest magnitude.
    """
    parts = [_quantised(part) for part in matrix.split(_ROWS_AT_ONCE)]
    codes, absmax = (torch.cat([part[k] for part in parts]) for k in range(2))
    return Nf4Rows(codes, absmax)


def _quantised(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and absmax of some rows."""
    blocks = matrix.float().contiguous().unflatten(1, (-1, BLOCK))
    absmax = blocks.abs().amax(dim=2)
    levels = table(matrix.device)
    relative = blocks / torch.where(absmax > 0, absmax, 1)[:, :, None]
    nearest = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8).flatten(1)
    return nearest[:, ::2] << 4 | nearest[:, 1::2], absmax


def blocks_of(width: int) -> int:
    """How many blocks of 64 a program reads of a row, a power of two: all of them."""
    return next_power_of_two(width // BLOCK)


def blocks_at_once(width: int, warps: int) -> int:
    """How many blocks a program of ``nf4_linear_program`` takes at once: its part of x is in registers too."""
    return min(_BLOCKS_AT_ONCE, _BLOCKS_A_WARP * warps, blocks_of(width))


def decoding(device: torch.device) -> dict[str, Any]:
    """How the NF4 programs are launched: on a card levels come from the other lanes of a warp."""
    return {"SHUFFLED": device.type == "cuda", **launch_options(device)}


@cache
def table(device: torch.device) -> torch.Tensor:
    """The sixteen NF4 values, float32."""
    return torch.tensor(VALUES, device=device)
