"""Which way to run a feed-forward block is fastest on this card: a short measurement, made once when a model is loaded.

Every candidate runs the same blocks in turn inside one captured graph, so launches cost what they cost while decoding
and no block is still in the cache from the run before (a few blocks are larger than it). Both arms are given the
fastest way there is: the dense arm the kernels or the vendor's own GEMV, the sparse arm the kernels on the neurons
where they lie or the vendor's GEMV on packed copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F

from .activations import GELU_ERF, GELU_TANH, RELU, SILU
from .gpu import ActiveBuffer, Matrices, Scratch, Tiles, feed_forward

Way = Literal["kernels", "vendor"]
Timer = Callable[[Callable[[], object]], float]

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


def choose(blocks: Sequence[Matrices], timer: Timer | None = None, keep: float = 0.5) -> Choice:
    """Measures the candidates on the first few ``blocks`` at batch 1, the sparse ones with ``keep`` of the neurons.

    ``timer`` gives a call's milliseconds; None captures a graph and takes device events.
    """
    timer = timer or graph_ms
    some = blocks[:_BLOCKS]
    first = some[0]
    x = torch.randn(1, first.width, device=first.up.device).to(first.up.dtype)
    kept = [torch.randperm(each.d_ff)[: max(1, round(keep * each.d_ff))].sort().values.to(x.device) for each in some]
    active = [ActiveBuffer.full(each.d_ff, x.device) for each in some]
    for buffer, indices in zip(active, kept, strict=True):
        buffer.set(indices)

    def kernels(tiles: Tiles, buffers: Sequence[ActiveBuffer | None]) -> float:
        scratch = [Scratch.for_(each, 1, tiles, x.dtype) for each in some]
        runs = list(zip(some, buffers, scratch, strict=True))
        return timer(lambda: [feed_forward(each, x, buffer, own, tiles) for each, buffer, own in runs])

    times: dict[Tiles, float] = {}
    tiles = Tiles()
    for stage in (first_launch(first.width), second_launch(first.width)):
        options = [dataclasses.replace(tiles, **option) for option in stage]
        times |= {option: kernels(option, active) for option in options}
        tiles = min(options, key=times.__getitem__)
    packed = [each.take(indices) for each, indices in zip(some, kept, strict=True)]
    measured = {
        "sparse, kernels": times[tiles],
        "sparse, vendor": timer(lambda: [vendor(each, x) for each in packed]),
        "dense, kernels": kernels(tiles, [None] * len(some)),
        "dense, vendor": timer(lambda: [vendor(each, x) for each in some]),
    }

    def fastest(arm: str) -> Way:
        return "kernels" if measured[f"{arm}, kernels"] <= measured[f"{arm}, vendor"] else "vendor"

    per_block = {name: ms / len(some) for name, ms in measured.items()}
    return Choice(tiles, fastest("dense"), fastest("sparse"), per_block)


def first_launch(width: int) -> list[dict[str, int]]:
    """Tiles of gate and up worth trying at hidden size ``width``: 16 to 64 KiB of bfloat16 reads under way each."""
    columns = _columns(width)
    shapes = [(4, 8, 0), (2, 4, 0), (1, 4, 0), (2, 8, 132 * 4), (4, 8, 132 * 2)]
    return [{"rows": rows, "columns": columns, "warps": warps, "programs": most} for rows, warps, most in shapes]


def second_launch(width: int) -> list[dict[str, int]]:
    """Tiles of down worth trying; the columns of a warp are 256, so that no sum crosses warps."""
    columns = min(_columns(width), 1024)
    warps = max(1, columns // 256)
    shapes = [(8, 1, 128), (16, 1, 64), (4, 1, 256), (8, 3, 128), (8, 1, 256)]
    return [
        {"down_rows": rows, "down_columns": columns, "down_warps": warps, "down_stages": stages, "splits": splits}
        for rows, stages, splits in shapes
    ]


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
