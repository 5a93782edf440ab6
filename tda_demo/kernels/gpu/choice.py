"""Which way to run a feed-forward block is fastest on this card: a short measurement, made once when a model is loaded.

Every candidate runs the same blocks in turn inside one captured graph, so launches cost what they cost while decoding
and no block is still in the cache from the run before (together they are larger than it). Both arms are given the
fastest way there is, each with tiles of its own: the dense arm the kernels or the vendor's own GEMV, the sparse arm the
kernels on the neurons where they lie or the vendor's GEMV on packed copies.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, cast

import torch
import torch.nn.functional as F

from ...model.feedforward import FeedForward
from ...support.errors import UserError
from ..activations import GELU_ERF, GELU_TANH, RELU, SILU
from .blocks import ActiveBuffer, BlockMatrices, Tiles, feed_forward, scratches
from .device import graph_ms
from .linear import LinearTiles
from .matrices import Matrices
from .rest import MatricesWithRest
from .stages import LINEAR_TILES, Stages, float_stages, nf4_stages, rest_stages

Way = Literal["kernels", "vendor", "vendor, usual layout"]
Timer = Callable[[Callable[[], object]], float]

logger = logging.getLogger(__name__)

_BLOCKS, _BYTES = 4, 256 * 2**20  # to measure on, at least: caches hold some 50 MB
_USUAL = "dense, vendor, usual layout"
_NOTHING_RUNS = "None of the kernels runs on this GPU, as the log explains: use the device cpu."
_WAY_NAMES: dict[Way, str] = {
    "kernels": "kernels",
    "vendor": "vendor GEMV",
    "vendor, usual layout": "vendor GEMV on a down projection in the usual layout",
}
_FUNCTIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    SILU: F.silu,
    GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    GELU_ERF: F.gelu,
    RELU: F.relu,
}


@dataclass(frozen=True)
class KernelChoice:
    """The kernels' tiles in each arm and the way each arm runs; ``times_ms`` a block, by arm and way."""

    dense_tiles: Tiles
    sparse_tiles: Tiles
    dense: Way
    sparse: Way
    times_ms: dict[str, float]

    def tiles(self, *, sparse: bool) -> Tiles:
        return self.sparse_tiles if sparse else self.dense_tiles

    def __str__(self) -> str:
        sparse = "skipping in place" if self.sparse == "kernels" else "packed copies, vendor GEMV"
        return f"dense {_WAY_NAMES[self.dense]}; sparse {sparse}"


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

    blocks: Sequence[BlockMatrices]
    kept: Sequence[torch.Tensor]
    x: torch.Tensor

    @classmethod
    def of(cls, blocks: Sequence[BlockMatrices], dtype: torch.dtype, keep: float = 0.5) -> Trial:
        """The first of ``blocks``, enough of them, with ``keep`` of their neurons, drawn at random."""
        some = blocks[: _enough(blocks)]
        device = some[0].device
        kept = [
            torch.randperm(block.d_ff)[: max(1, round(keep * block.d_ff))].sort().values.to(device) for block in some
        ]
        return cls(some, kept, torch.randn(1, some[0].width, device=device).to(dtype))

    def kernels(self, tiles: Tiles, *, sparse: bool) -> Callable[[], object]:
        """Every block in turn with ``tiles``, the neurons kept or all of them."""
        runs = []
        memory = scratches(self.blocks, tiles, self.x.dtype)
        for block, indices, scratch in zip(self.blocks, self.kept, memory, strict=True):
            active = ActiveBuffer.full(block.d_ff, block.device) if sparse else None
            if active is not None:
                others = torch.ones(block.d_ff, dtype=torch.bool, device=block.device).index_fill(0, indices, False)
                active.set(indices, others.nonzero().squeeze(1))
            runs.append((block, active, scratch))
        return lambda: [feed_forward(block, self.x, active, scratch, tiles) for block, active, scratch in runs]


def choose(
    trial: Trial,
    stages: Stages,
    rivals: Mapping[str, Callable[[], object]],
    timer: Timer | None = None,
    only_timed: Collection[str] = (),
) -> KernelChoice:
    """Measures each arm's tiles for both launches on ``trial``, then the best of them against the rivals.

    What fails on this card (a program too large for it, say) counts as never done, and the log says so.

    Args:
        stages: fields of ``Tiles`` to try for gate and up, then for down.
        rivals: the vendor's ways through the trial's blocks, by arm and way: "dense, vendor".
        timer: a call's milliseconds; None captures a graph and takes device events.
        only_timed: rivals that are measured and not chosen.

    Raises:
        UserError: an arm has no way that runs.
    """
    timer = _or_never(timer or graph_ms)
    dense_tiles, dense = _best_tiles(trial, stages, timer, sparse=False)
    sparse_tiles, sparse = _best_tiles(trial, stages, timer, sparse=True)
    measured = {"dense, kernels": dense, "sparse, kernels": sparse}
    measured |= {name: timer(rival) for name, rival in rivals.items()}
    open_to = {name: ms for name, ms in measured.items() if name not in only_timed}
    per_block = {name: ms / len(trial.blocks) for name, ms in measured.items()}
    return KernelChoice(dense_tiles, sparse_tiles, _fastest("dense", open_to), _fastest("sparse", open_to), per_block)


def choose_float(blocks: Sequence[Matrices], timer: Timer | None = None) -> KernelChoice:
    """``choose`` for blocks in a float dtype, against torch's own products.

    Of these the dense arm may have down by neuron, as the kernels read it, or in transformers' layout, where there is
    memory for copies of all layers. Packed copies have transformers' layout.
    """
    trial = Trial.of(blocks, blocks[0].up.dtype)
    some = blocks[: len(trial.blocks)]
    usual = [_in_the_usual_layout(block) for block in some]
    kept = zip(some, trial.kept, strict=True)
    packed = [_in_the_usual_layout(block.take(indices)) for block, indices in kept]
    rivals = {
        "dense, vendor": lambda: [vendor(block, trial.x) for block in some],
        _USUAL: lambda: [vendor(block, trial.x) for block in usual],
        "sparse, vendor": lambda: [vendor(block, trial.x) for block in packed],
    }
    device = blocks[0].device
    room = 2 * sum(block.down.nbytes for block in blocks) <= _free_bytes(device)  # graphs and caches need some too
    stages = float_stages(blocks[0].width, multiprocessors(device))
    return choose(trial, stages, rivals, timer, () if room else (_USUAL,))


def choose_int8(weights: Sequence[BlockMatrices], dtype: torch.dtype, timer: Timer | None = None) -> KernelChoice:
    """``choose`` for LLM.int8, among tiles alone: bitsandbytes' product waits for the device, so no graph holds it."""
    stages = float_stages(weights[0].width, multiprocessors(weights[0].device))
    return choose(Trial.of(weights, dtype), stages, {}, timer)


def choose_nf4(
    weights: Sequence[BlockMatrices], dtype: torch.dtype, blocks: Sequence[FeedForward], timer: Timer | None = None
) -> KernelChoice:
    """``choose`` for NF4, against bitsandbytes' own modules in the dense arm; columns of theirs cannot be packed."""
    trial = Trial.of(weights, dtype)
    some, activation = blocks[: len(trial.blocks)], weights[0].activation
    rival = {"dense, vendor": lambda: [through_modules(block, activation, trial.x) for block in some]}
    return choose(trial, nf4_stages(weights[0].width, multiprocessors(weights[0].device)), rival, timer)


def choose_rest(weights: Sequence[MatricesWithRest], timer: Timer | None = None) -> Tiles:
    """The fastest tiles for blocks whose neurons left out contribute; the kernels alone can run them.

    Raises:
        UserError: no tiles run.
    """
    trial = Trial.of(weights, weights[0].exact.up.dtype)
    stages = rest_stages(weights[0].width, multiprocessors(weights[0].device))
    tiles, ms = _best_tiles(trial, stages, _or_never(timer or graph_ms), sparse=True)
    if ms == inf:
        raise UserError(_NOTHING_RUNS)
    return tiles


def choose_linear(
    modules: Callable[[], object], kernels: Callable[[LinearTiles], Callable[[], object]], timer: Timer | None = None
) -> LinearTiles | None:
    """The fastest tiles of the kernel for some linear layers, or None where their ``modules`` are faster.

    ``modules`` and what ``kernels`` returns run all of these layers in turn.
    """
    timer = _or_never(timer or graph_ms)
    times = {tiles: timer(kernels(tiles)) for tiles in LINEAR_TILES}
    best = min(times, key=times.__getitem__)
    return best if times[best] < timer(modules) else None


def through_modules(block: FeedForward, activation: int, x: torch.Tensor) -> torch.Tensor:
    """The block [batch, d] through its linears as they are, whatever their storage."""
    function = _FUNCTIONS[activation]
    return block.down(block.activations_from(function, [linear(x) for linear in block.input_linears]))


def _enough(blocks: Sequence[BlockMatrices]) -> int:
    """How many of ``blocks`` to measure on, all if need be."""
    held = 0
    for number, block in enumerate(blocks, 1):
        held += block.d_ff * block.neuron_bytes
        if number >= _BLOCKS and held >= _BYTES:
            return number
    return len(blocks)


def _best_tiles(trial: Trial, stages: Stages, timer: Timer, *, sparse: bool) -> tuple[Tiles, float]:
    """The fastest of every stage on top of the fastest before, and its milliseconds."""
    best, times = Tiles(), {}
    for stage in stages:
        options = [dataclasses.replace(best, **option) for option in stage]
        times |= {option: timer(trial.kernels(option, sparse=sparse)) for option in options}
        best = min(options, key=times.__getitem__)
    return best, times[best]


def _or_never(timer: Timer) -> Timer:
    def time_or_never(call: Callable[[], object]) -> float:
        try:
            return timer(call)
        except Exception as error:  # Triton has exceptions of its own, and passes on those of its tools
            logger.warning("One way through a block does not run on this card: %s", error)
            return inf

    return time_or_never


def _fastest(arm: str, measured: Mapping[str, float]) -> Way:
    ways = {name.removeprefix(f"{arm}, "): ms for name, ms in measured.items() if name.startswith(arm)}
    best = min(ways, key=ways.__getitem__)
    if ways[best] == inf:
        raise UserError(_NOTHING_RUNS)
    return cast(Way, best)


def _in_the_usual_layout(block: Matrices) -> Matrices:
    """``block`` with a copy of down that is contiguous as [d, d_ff]."""
    return dataclasses.replace(block, down=block.down.t().contiguous().t())


def _free_bytes(device: torch.device) -> float:
    """What is left of the card's memory, torch's unused share included; without a card no limit."""
    if device.type != "cuda":
        return inf
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def multiprocessors(device: torch.device) -> int:
    """How many of them the card has."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
