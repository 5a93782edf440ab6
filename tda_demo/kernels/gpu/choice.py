"""Which way to run a feed-forward block is fastest on this card: a short measurement, made once when a model is loaded.

Every candidate runs the same blocks in turn inside one captured graph, so launches cost what they cost while decoding
and no block is still in the cache from the run before (a few blocks are larger than it). Both arms are given the
fastest way there is: the dense arm the kernels or the vendor's own GEMV, the sparse arm the kernels on the neurons
where they lie or the vendor's GEMV on packed copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F

from ...feedforward import FeedForward
from ..activations import GELU_ERF, GELU_TANH, RELU, SILU
from .blocks import ActiveBuffer, Matrices, Scratch, Tiles, Weights, feed_forward

Way = Literal["kernels", "vendor"]
Timer = Callable[[Callable[[], object]], float]
Stages = tuple[list[dict[str, int]], list[dict[str, int]]]

_BLOCKS = 4
_REPEATS = 20
_FUNCTIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    SILU: F.silu,
    GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    GELU_ERF: F.gelu,
    RELU: F.relu,
}


@dataclass(frozen=True)
class Choice:
    """The tiles of the kernels and the way each arm runs; ``times_ms`` a block, by candidate."""

    tiles: Tiles
    dense: Way
    sparse: Way
    times_ms: dict[str, float]

    def __str__(self) -> str:
        sparse = "skipping in place" if self.sparse == "kernels" else "packed copies, vendor GEMV"
        return f"dense {'kernels' if self.dense == 'kernels' else 'vendor GEMV'}; sparse {sparse}"


def vendor(matrices: Matrices, x: torch.Tensor) -> torch.Tensor:
    """The block [batch, d] through torch's own products, as transformers computes it: on packed copies too."""
    value = F.linear(x, matrices.up, matrices.up_bias)
    function = _FUNCTIONS[matrices.activation]
    if matrices.gate is None:
        activations = function(value)
    else:
        activations = function(F.linear(x, matrices.gate, matrices.gate_bias)) * value
    product = activations @ matrices.down
    return product if matrices.down_bias is None else product + matrices.down_bias


@dataclass(frozen=True, eq=False)
class Trial:
    """Blocks to measure on, and for each of them the neurons kept, int64 [k]; ``x`` is [1, d]."""

    blocks: Sequence[Weights]
    kept: Sequence[torch.Tensor]
    x: torch.Tensor

    @classmethod
    def of(cls, blocks: Sequence[Weights], dtype: torch.dtype, keep: float = 0.5) -> Trial:
        """The first few of ``blocks`` with ``keep`` of their neurons, drawn at random."""
        some = blocks[:_BLOCKS]
        device = some[0].device
        kept = [torch.randperm(each.d_ff)[: max(1, round(keep * each.d_ff))].sort().values.to(device) for each in some]
        return cls(some, kept, torch.randn(1, some[0].width, device=device).to(dtype))

    def kernels(self, tiles: Tiles, *, sparse: bool) -> Callable[[], object]:
        """Every block in turn with ``tiles``, the neurons kept or all of them."""
        runs = []
        for block, indices in zip(self.blocks, self.kept, strict=True):
            active = ActiveBuffer.full(block.d_ff, block.device) if sparse else None
            if active is not None:
                active.set(indices)
            runs.append((block, active, Scratch.for_(block, 1, tiles, self.x.dtype)))
        return lambda: [feed_forward(block, self.x, active, own, tiles) for block, active, own in runs]


def choose(
    trial: Trial, stages: Stages, rivals: Mapping[str, Callable[[], object]], timer: Timer | None = None
) -> Choice:
    """Measures the tiles of both launches on ``trial``, then the best of them against the rivals.

    Args:
        stages: fields of ``Tiles`` to try for gate and up, then for down.
        rivals: the vendor's way through the trial's blocks, for the arms "dense" and "sparse" that have one.
        timer: a call's milliseconds; None captures a graph and takes device events.
    """
    timer = timer or graph_ms
    times: dict[Tiles, float] = {}
    tiles = Tiles()
    for stage in stages:
        options = [dataclasses.replace(tiles, **option) for option in stage]
        times |= {option: timer(trial.kernels(option, sparse=True)) for option in options}
        tiles = min(options, key=times.__getitem__)
    measured = {"sparse, kernels": times[tiles], "dense, kernels": timer(trial.kernels(tiles, sparse=False))}
    measured |= {f"{arm}, vendor": timer(rival) for arm, rival in rivals.items()}

    def fastest(arm: str) -> Way:
        return "kernels" if measured[f"{arm}, kernels"] <= measured.get(f"{arm}, vendor", inf) else "vendor"

    per_block = {name: ms / len(trial.blocks) for name, ms in measured.items()}
    return Choice(tiles, fastest("dense"), fastest("sparse"), per_block)


def choose_float(blocks: Sequence[Matrices], timer: Timer | None = None) -> Choice:
    """``choose`` for blocks in a float dtype, against torch's own products."""
    trial = Trial.of(blocks, blocks[0].up.dtype)
    some = blocks[: len(trial.blocks)]
    packed = [block.take(indices) for block, indices in zip(some, trial.kept, strict=True)]
    rivals = {
        "dense": lambda: [vendor(block, trial.x) for block in some],
        "sparse": lambda: [vendor(block, trial.x) for block in packed],
    }
    return choose(trial, float_stages(blocks[0].width), rivals, timer)


def choose_int8(weights: Sequence[Weights], dtype: torch.dtype, timer: Timer | None = None) -> Choice:
    """``choose`` for LLM.int8, among tiles alone: bitsandbytes' product waits for the device, so no graph holds it."""
    return choose(Trial.of(weights, dtype), float_stages(weights[0].width), {}, timer)


def choose_nf4(
    weights: Sequence[Weights], dtype: torch.dtype, blocks: Sequence[FeedForward], timer: Timer | None = None
) -> Choice:
    """``choose`` for NF4, against bitsandbytes' own modules in the dense arm; columns of theirs cannot be packed."""
    trial = Trial.of(weights, dtype)
    some = list(zip(blocks, weights, strict=True))[: len(trial.blocks)]
    rival = {"dense": lambda: [through_modules(block, each.activation, trial.x) for block, each in some]}
    return choose(trial, nf4_stages(weights[0].width), rival, timer)


def through_modules(block: FeedForward, activation: int, x: torch.Tensor) -> torch.Tensor:
    """The block [batch, d] through its linears as they are, whatever their storage."""
    function = _FUNCTIONS[activation]
    value = block.up(x)
    if block.fused:
        gate, value = value.chunk(2, dim=-1)
        return block.down(function(gate) * value)
    return block.down(function(value) if block.gate is None else function(block.gate(x)) * value)


def float_stages(width: int) -> Stages:
    """Tiles worth trying at hidden size ``width``: for gate and up, 16 to 64 KiB of bfloat16 reads under way each.

    For down the columns of a warp are 256, so that no sum crosses warps.
    """
    columns = _columns(width)
    first = [(4, 8, 0), (2, 4, 0), (1, 4, 0), (2, 8, 132 * 4), (4, 8, 132 * 2)]
    second = [(8, 1, 128), (16, 1, 64), (4, 1, 256), (8, 3, 128), (8, 1, 256)]
    return (
        [{"rows": rows, "columns": columns, "warps": warps, "programs": most} for rows, warps, most in first],
        [
            {
                "down_rows": rows,
                "down_columns": columns,
                "down_warps": max(1, columns // 256),
                "down_stages": stages,
                "splits": splits,
            }
            for rows, stages, splits in second
        ],
    )


def nf4_stages(width: int) -> Stages:
    """Tiles worth trying for NF4; at 4096 columns a row of codes is 2 KiB and a program has 4 to 8 KiB under way."""
    columns = min(4096, max(256, width & -width))
    first = [(4, 8, 0), (2, 4, 0), (1, 4, 0), (2, 4, 132 * 8)]
    second = [(4, 1024, 4, 128), (8, 512, 4, 64), (4, 512, 2, 128), (8, 1024, 4, 64)]
    return (
        [{"rows": rows, "columns": columns, "warps": warps, "programs": most} for rows, warps, most in first],
        [
            {"down_rows": rows, "down_columns": min(wide, columns), "down_warps": warps, "splits": splits}
            for rows, wide, warps, splits in second
        ],
    )


def _columns(width: int) -> int:
    """The largest power of two up to 1024 that divides ``width``, so that no lane idles; 512 where it is small."""
    divisor = width & -width
    return min(1024, divisor) if divisor >= 256 else 512


def graph_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of ``call`` on the current CUDA device, captured once and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and lets libraries make their handles, neither of which can be captured
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in pairwise(events))
    return times[len(times) // 2]
