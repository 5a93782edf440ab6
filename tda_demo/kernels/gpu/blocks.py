"""Feed-forward blocks on a GPU, all neurons or an active set in place: three Triton launches a block.

1. gate, up and the activation function, over the active neurons;
2. the down projection over the same neurons, each split of them into a float32 partial sum;
3. the partial sums in order, plus the bias.

``gate``, ``up`` and ``down`` are stored by neuron, so that one neuron is three contiguous rows and skipping it saves
its bytes. A batch of 1 to 8 rows of x shares one active set: with several sequences it must be the union of theirs.
Nothing here waits for the device or depends on the active set's size on the host.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...feedforward import FeedForward

MAX_BATCH = 8


def has_triton() -> bool:
    """Whether the kernels can run: Triton is installed (it comes with the CUDA builds of torch)."""
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Tiles:
    """How the launches are cut; powers of two. Which is fastest depends on the card and is measured (``choice``).

    ``programs`` bounds the grid of the first launch, whose programs then take several tiles each; 0 gives each tile a
    program of its own. ``splits`` is the number of partial sums, at most 1024.
    """

    rows: int = 4
    columns: int = 1024
    warps: int = 8
    programs: int = 0
    down_rows: int = 8
    down_columns: int = 1024
    down_warps: int = 4
    down_stages: int = 1
    splits: int = 128


@dataclass(frozen=True, eq=False)
class ActiveBuffer:
    """An active set on the device, rewritten in place: int32 ``chosen`` [d_ff], of which the first ``count`` [1] count.

    What lies behind them is ignored.
    """

    chosen: torch.Tensor
    count: torch.Tensor

    @classmethod
    def full(cls, d_ff: int, device: torch.device) -> ActiveBuffer:
        """All neurons."""
        chosen = torch.arange(d_ff, dtype=torch.int32, device=device)
        return cls(chosen, torch.full((1,), d_ff, dtype=torch.int32, device=device))

    def set(self, indices: torch.Tensor) -> None:
        """``indices`` int64 [k], the active neurons."""
        self.chosen[: len(indices)].copy_(indices)
        self.count.fill_(len(indices))


@dataclass(frozen=True, eq=False)
class Scratch:
    """What a block's launches leave: ``activations`` float32 [batch, d_ff] place by place, ``partial`` sums, ``out``.

    ``partial`` is float32 [splits, batch, d], ``out`` [batch, d] of the weights' dtype. Blocks that run one after the
    other may share ``partial``.
    """

    activations: torch.Tensor
    partial: torch.Tensor
    out: torch.Tensor

    @classmethod
    def for_(
        cls, weights: Weights, batch: int, tiles: Tiles, dtype: torch.dtype, partial: torch.Tensor | None = None
    ) -> Scratch:
        device = weights.device
        if partial is None:
            partial = torch.empty(tiles.splits, batch, weights.width, device=device)
        return cls(
            torch.zeros(batch, weights.d_ff, device=device),
            partial,
            torch.empty(batch, weights.width, dtype=dtype, device=device),
        )


class Weights(Protocol):
    """A block's weights in some storage, and the first two launches over them. d_ff neurons, hidden size ``width``."""

    @property
    def activation(self) -> int:
        """One of ``activations``."""
        ...

    @property
    def down_bias(self) -> torch.Tensor | None: ...

    @property
    def down_scale(self) -> torch.Tensor | None:
        """float32 [d], a factor of every output; None where the weights of down have theirs, or none."""
        ...

    @property
    def d_ff(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def neuron_bytes(self) -> int:
        """What a step reads for each active neuron."""
        ...

    def launch(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> None:
        """Writes ``activations`` and ``partial`` of ``scratch`` for ``x`` [batch, d]; ``active`` None: all neurons."""
        ...


class RowWeights(Weights, Protocol):
    """Weights of which a neuron is a row in each matrix; ``down`` is [d_ff, d], the biases of gate and up [d_ff]."""

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
        down = by_neuron(block.down)
        if block.fused:
            gate, up = block.up.weight.detach().chunk(2)
            gate_bias, up_bias = halves(block.up.bias)
            return cls(gate, up, down, gate_bias, up_bias, block.down.bias, activation)
        gate = None if block.gate is None else block.gate.weight.detach()
        gate_bias = None if block.gate is None else block.gate.bias
        return cls(gate, block.up.weight.detach(), down, gate_bias, block.up.bias, block.down.bias, activation)

    @property
    def down_scale(self) -> None:
        return None

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
        rows = [each[:1] for each in (self.gate, self.up, self.down, self.gate_bias, self.up_bias) if each is not None]
        return sum(row.nbytes for row in rows)

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

    def launch(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> None:
        launch(self, self.gate, self.up, None, None, x, active, scratch, tiles)


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
    """``Weights.launch`` where an element is a number, in whatever dtype, times its row's scale if it has one."""
    programs = triton_programs("programs")
    batch, width = x.shape
    shape: Any = {"D": width, "FF": weights.d_ff, "BATCH": batch, "PADDED": padded(batch), "ALL": active is None}
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
        GLU=gate is not None,
        SCALED=up_scale is not None,
        GATE_BIAS=weights.gate_bias is not None,
        UP_BIAS=weights.up_bias is not None,
        KIND=weights.activation,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
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
        STAGES=tiles.down_stages,
        num_warps=tiles.down_warps,
    )


def by_neuron(linear: nn.Linear) -> torch.Tensor:
    """The weight of a down projection as contiguous [d_ff, d].

    The linear keeps a transposed view of the same memory, so the model is as large as before; its numbers are the same.
    """
    weight = linear.weight.detach()
    if not weight.t().is_contiguous():
        weight = weight.t().contiguous().t()
        linear.weight.data = weight
    return weight.t()


def feed_forward(
    weights: Weights, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles
) -> torch.Tensor:
    """The block's output [batch, d] for ``x`` [batch, d], in ``scratch.out``; ``active`` None computes all neurons.

    ``x`` is contiguous float32, float16 or bfloat16; sums are float32. The dense kernel is this one with no list of
    neurons to read: equal grid, tiles and sums.
    """
    weights.launch(x, active, scratch, tiles)
    return add_partials(scratch, weights.down_bias, weights.down_scale)


def add_partials(scratch: Scratch, bias: torch.Tensor | None, scale: torch.Tensor | None = None) -> torch.Tensor:
    """``scratch.out`` [batch, d]: the partial sums of down in order, times ``scale`` [d], plus ``bias`` [d]."""
    programs = triton_programs("programs")
    splits, batch, width = scratch.partial.shape
    columns = 32  # few, so that enough programs share the short job
    programs.sum_program[(-(-width // columns), batch)](
        scratch.partial,
        scale,
        bias,
        scratch.out,
        D=width,
        BATCH=batch,
        SPLITS=splits,
        SCALED=scale is not None,
        BIAS=bias is not None,
        COLUMNS=columns,
        num_warps=4,
    )
    return scratch.out


def halves(bias: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The biases of gate and up, from a fused one."""
    if bias is None:
        return None, None
    gate, up = bias.detach().chunk(2)
    return gate, up


def triton_programs(module: str) -> Any:
    """A module of Triton programs, imported when first needed: Triton is not on every machine."""
    return importlib.import_module(f"{__package__}.{module}")


def grid(d_ff: int, tiles: Tiles) -> int:
    """The grid of the first launch."""
    needed = -(-d_ff // tiles.rows)
    return min(needed, tiles.programs or needed)


def padded(batch: int) -> int:
    """The next power of two: the sizes of Triton's tensors are such."""
    return 1 << (batch - 1).bit_length()
