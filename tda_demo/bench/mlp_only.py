"""The feed-forward blocks alone, all layers in one captured run: what the kernels themselves gain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ..decode.gpu.kernel_blocks import BlockWeights
from ..kernels.gpu.blocks import ActiveBuffer, feed_forward, scratches
from ..kernels.gpu.choice import KernelChoice, vendor
from ..kernels.gpu.device import eager_runner, graph_runner
from ..kernels.gpu.matrices import Matrices
from .run import Contestant


class Captured:
    """One call of all blocks, prepared once; device events time it on a card."""

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self.device = device
        self.runner = (graph_runner if device.type == "cuda" else eager_runner)(call)

    def times_ms(self, count: int) -> list[float]:
        return [self._on_the_card() if self.device.type == "cuda" else self._on_the_host() for _ in range(count)]

    def _on_the_card(self) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.runner.run()  # keeps the card busy until the timed run is queued: else its launch would be timed too
        begin.record()
        self.runner.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def _on_the_host(self) -> float:
        begin = time.perf_counter()
        self.runner.run()
        return (time.perf_counter() - begin) * 1e3


def mlp_contestants(
    blocks: BlockWeights, choice: KernelChoice, keeps: Sequence[float], precision: str
) -> Iterator[Contestant]:
    """Rows "MLP dense" and "MLP sparse", and "MLP vendor" where the vendor's products run float weights."""
    weights = blocks.weights
    device = weights[0].device
    x = torch.randn(1, weights[0].width, device=device).to(blocks.dtype)
    read = sum(block.d_ff * block.neuron_bytes for block in weights)
    floats = [block for block in weights if isinstance(block, Matrices)]
    if floats:
        rival = Captured(lambda: [vendor(block, x) for block in floats], device)
        yield Contestant("MLP vendor", precision, "dense", 1.0, read, rival)
    for keep in (1.0, *keeps):
        tiles = choice.tiles(sparse=keep < 1)
        runs = []
        for block, scratch in zip(weights, scratches(weights, tiles, blocks.dtype), strict=True):
            active = None if keep == 1 else ActiveBuffer.full(block.d_ff, device)
            if active is not None:
                active.set(torch.randperm(block.d_ff, device=device)[: round(keep * block.d_ff)].sort().values)
            runs.append((block, active, scratch))
        captured = Captured(
            lambda runs=runs, tiles=tiles: [
                feed_forward(block, x, active, scratch, tiles) for block, active, scratch in runs
            ],
            device,
        )
        kept = sum(round(keep * block.d_ff) * block.neuron_bytes for block in weights)
        name = "MLP dense" if keep == 1 else "MLP sparse"
        yield Contestant(name, precision, "random" if keep < 1 else "dense", keep, kept, captured)
