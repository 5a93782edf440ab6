"""Feed-forward blocks on a GPU, all neurons or an active set in place: three Triton launches a block at most.

1. gate, up and the activation function, over the active neurons;
2. the down projection over the same neurons, each split of them into a float32 partial sum;
3. the partial sums in order, plus the bias.

``gate``, ``up`` and ``down`` are stored by neuron, so that one neuron is three contiguous rows and skipping it saves
its bytes.
Nothing here waits for the device or depends on the active set's size on the host.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

_OVERLAPPING_GRAPHS = 12030  # CUDA 12.3, whose drivers know launches in a graph that overlap


@dataclass(frozen=True)
class Tiles:
    """How the launches are cut; powers of two. Which is fastest depends on the card and is measured (``choice``).

    ``programs`` bounds the grid of the first launch, whose programs then take several tiles each; 0 gives each tile a
    program of its own. ``splits`` is the number of partial sums, at most 1024.
    """

    rows: int = 2
    warps: int = 4
    programs: int = 0
    down_rows: int = 8
    down_columns: int = 1024
    down_warps: int = 4
    splits: int = 128


@dataclass(frozen=True, eq=False)
class ActiveBuffer:
    """An active set on the device, rewritten in place: int32 ``chosen`` [d_ff], of which the first ``count[0]`` count.

    Those from there to ``count[1]`` are left out, for weights that have a cheaper copy of them (``rest``). What lies
    behind them is ignored. ``count`` is int32 [2].
    """

    chosen: torch.Tensor
    count: torch.Tensor

    @classmethod
    def full(cls, d_ff: int, device: torch.device) -> ActiveBuffer:
        """All neurons."""
        chosen = torch.arange(d_ff, dtype=torch.int32, device=device)
        return cls(chosen, torch.full((2,), d_ff, dtype=torch.int32, device=device))

    def set(self, indices: torch.Tensor, left_out: torch.Tensor | None = None) -> None:
        """``indices`` int64 [k], the active neurons; ``left_out`` int64 [d_ff - k] where those contribute."""
        active = listed = len(indices)
        self.chosen[:active].copy_(indices)
        if left_out is not None:
            listed += len(left_out)
            self.chosen[active:listed].copy_(left_out)
        self.count[0].fill_(active)
        self.count[1].fill_(listed)


@dataclass(frozen=True, eq=False)
class Scratch:
    """What a block's launches leave: ``activations`` float32 [1, d_ff] place by place, ``partial`` sums, ``out``.

    ``partial`` is float32 [splits, d], ``out`` [1, d] of the weights' dtype. Blocks that run one after the other may
    share ``partial``.
    """

    activations: torch.Tensor
    partial: torch.Tensor
    out: torch.Tensor

    @classmethod
    def for_(
        cls, weights: BlockMatrices, tiles: Tiles, dtype: torch.dtype, partial: torch.Tensor | None = None
    ) -> Scratch:
        device = weights.device
        if partial is None:
            partial = torch.empty(tiles.splits, weights.width, device=device)
        return cls(
            torch.zeros(1, weights.d_ff, device=device),
            partial,
            torch.empty(1, weights.width, dtype=dtype, device=device),
        )


class BlockMatrices(Protocol):
    """A block's weights in some storage, and the launches over them. d_ff neurons, hidden size ``width``."""

    @property
    def activation(self) -> int:
        """One of ``activations``."""
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

    @property
    def output_bytes(self) -> int:
        """What a step reads whatever is active: what belongs to outputs, not to neurons."""
        ...

    def run(self, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> torch.Tensor:
        """``feed_forward``."""
        ...


def scratches(weights: Sequence[BlockMatrices], tiles: Tiles, dtype: torch.dtype) -> list[Scratch]:
    """A scratch for each of blocks that run one after the other: they share ``partial``."""
    first = Scratch.for_(weights[0], tiles, dtype)
    return [first, *(Scratch.for_(block, tiles, dtype, first.partial) for block in weights[1:])]


def feed_forward(
    weights: BlockMatrices, x: torch.Tensor, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles
) -> torch.Tensor:
    """The block's output [1, d] for one token ``x`` [1, d], in ``scratch.out``; ``active`` None computes all neurons.

    ``x`` is contiguous float32, float16 or bfloat16; sums are float32. The dense kernel is this one with no list of
    neurons to read: equal grid, tiles and sums.

    Where launches overlap, weights and ``active`` are read while launches of ours before this one still run, and must
    be written by none of them. That goes for every launch, for a norm's weights, a position and a cache's past too.
    """
    return weights.run(x, active, scratch, tiles)


def add_partials(scratch: Scratch, bias: torch.Tensor | None, scale: torch.Tensor | None = None) -> torch.Tensor:
    """``scratch.out`` [1, d]: the partial sums of down in order, times ``scale`` [d], plus ``bias`` [d]."""
    programs = triton_programs("programs")
    splits, width = scratch.partial.shape
    columns = 32  # few, so that enough programs share the short job
    programs.sum_program[(-(-width // columns),)](
        scratch.partial,
        scale,
        bias,
        scratch.out,
        D=width,
        SPLITS=splits,
        SCALED=scale is not None,
        BIAS=bias is not None,
        COLUMNS=columns,
        num_warps=4,
        **launch_options(scratch.out.device),
    )
    return scratch.out


def triton_programs(module: str) -> Any:
    """A module of Triton programs, imported when first needed: Triton is not on every machine."""
    return importlib.import_module(f"{__package__}.{module}")


@cache
def launch_options(device: torch.device) -> dict[str, Any]:
    """What every launch is told: that it may begin before the last one ends, where the card can do that.

    And that a product and a sum may be one instruction, which Triton from 3.10 on does only where it is asked to; NF4,
    which instructions limit, would take an eighth more of them.
    """
    overlap = (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (9, 0)
        and driver_version() >= _OVERLAPPING_GRAPHS
    )
    return {"OVERLAP": overlap, "enable_fp_fusion": True, **({"launch_pdl": True} if overlap else {})}


def driver_version() -> int:
    """The latest CUDA that the driver knows, 12030 for 12.3; 0 where there is no driver."""
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion(
            ctypes.byref(version)
        )
    return version.value


def grid(d_ff: int, tiles: Tiles) -> int:
    """The grid of the first launch."""
    needed = -(-d_ff // tiles.rows)
    return min(needed, tiles.programs or needed)


def next_power_of_two(number: int) -> int:
    """``number`` or the next power of two: the sizes of Triton's tensors are such."""
    return 1 << (number - 1).bit_length()
