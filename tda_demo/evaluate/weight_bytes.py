"""What a step reads of the weights, by arithmetic: the same count as the engines', without making their copies.

What is skipped is asked of the engine that runs the method alone: a method that it only zeroes saves nothing. On a GPU
the lists of active neurons and bitsandbytes' scales, some bytes a neuron, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from ..decode.arm import engine_for
from ..decode.trees import bytes_per_step
from ..feedforward import FeedForward
from ..kernels.formats import encode, encode_by_neuron
from ..methods.base import Selector
from ..methods.token import TokenRule
from ..precision import head_format

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True)
class NeuronBytes:
    """What one neuron of a layer takes in each matrix; ``gate`` is 0 in plain blocks."""

    gate: float
    up: float
    down: float


@dataclass(frozen=True)
class Read:
    """What a step reads: weight ``bytes``, everything counted; share of the MLP's, what a method adds included."""

    bytes: float
    mlp_share: float


@dataclass(frozen=True)
class StepBytes:
    """Bytes a ``dense`` step of ``lm`` reads; each of the ``widths[l]`` neurons of layer l takes ``neurons[l]``."""

    lm: LoadedModel
    dense: int
    neurons: tuple[NeuronBytes, ...]
    widths: tuple[int, ...]

    @property
    def mlp(self) -> float:
        """Bytes of all neurons."""
        return sum(
            width * (each.gate + each.up + each.down) for each, width in zip(self.neurons, self.widths, strict=True)
        )

    def read(
        self,
        kept: Sequence[float],
        chooser: Selector | TokenRule,
        unread: Sequence[float] = (),
        copied: Sequence[float] = (),
    ) -> Read:
        """Of a step under ``chooser`` that uses ``kept`` neurons of each layer (means over texts are welcome).

        ``unread`` bytes of the MLP and of the rest, of a rule that leaves out other parts than neurons; ``copied``
        neurons of each layer are read once more, to pack a new active set.
        """
        full, extra = (chooser.full, chooser.extra_bytes) if isinstance(chooser, TokenRule) else (frozenset(), 0)
        engine = engine_for(self.lm, chooser)
        skipping = [engine.skips(chooser, block) for block in self.lm.blocks]
        if unread and all(skipping):
            return Read(self.dense - sum(unread) + extra, 1 - (unread[0] - extra) / self.mlp)
        saved = 0.0
        counts = zip(self.neurons, self.widths, kept, copied or [0] * len(kept), skipping, strict=True)
        for each, width, count, again, skips in counts:
            if skips:
                by_matrix = asdict(each)
                saved += (width - count) * sum(size for matrix, size in by_matrix.items() if matrix not in full)
                saved -= again * sum(by_matrix.values())
        return Read(self.dense - saved + extra, 1 - (saved - extra) / self.mlp)


def step_bytes(lm: LoadedModel) -> StepBytes:
    """Counts the weights of ``lm`` as a step reads them: on a CPU in the kernels' formats, unless it is spread."""
    if lm.device.type != "cpu" or lm.is_spread:
        return StepBytes(lm, bytes_per_step(lm.model), tuple(_held(block) for block in lm.blocks), _widths(lm))
    from ..decode.cpu.fast_linears import read_by_a_step

    dense = 0
    downs = {block.down for block in lm.blocks}
    head = lm.model.get_output_embeddings()
    for _, module in read_by_a_step(lm):
        if module in downs:
            dense += _stored_down(module, lm.precision)
        elif isinstance(module, nn.Linear):
            dense += _stored(module, head_format(lm.precision) if module is head else lm.precision)
        elif isinstance(module, nn.Embedding):
            dense += module.weight[0].nbytes
        else:
            dense += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    return StepBytes(lm, dense, tuple(_stored_neuron(block, lm.precision) for block in lm.blocks), _widths(lm))


def _widths(lm: LoadedModel) -> tuple[int, ...]:
    return tuple(block.d_ff for block in lm.blocks)


def _neuron(block: FeedForward, rows: Callable[[nn.Linear], float], column: float) -> NeuronBytes:
    """``rows`` gives the bytes of a matrix of rows and its bias, ``column`` those of a neuron in ``down``."""
    gate, up = (
        0.0 if projection is None else rows(projection.linear) / projection.linear.out_features
        for projection in (block.gate, block.up)
    )
    return NeuronBytes(gate, up, column)


def _held(block: FeedForward) -> NeuronBytes:
    """Where weights are read as torch holds them; of ``down`` its column, no bias."""

    def rows(linear: nn.Linear) -> float:
        return sum(part.nbytes for part in linear.parameters(recurse=False))

    return _neuron(block, rows, block.down.weight.nbytes / block.d_ff)


def _stored(linear: nn.Linear, precision: str) -> int:
    """Bytes of a matrix whose rows are stored one like the other, and of its bias."""
    return encode(linear.weight[:1], precision).nbytes * linear.out_features + _bias(linear)


def _stored_down(linear: nn.Module, precision: str) -> int:
    """Bytes of a down projection, which is stored by neuron, and of its bias."""
    down = cast(nn.Linear, linear)
    return _column(down, precision) * down.in_features + _output_scales(down, precision) + _bias(down)


def _stored_neuron(block: FeedForward, precision: str) -> NeuronBytes:
    """In the kernels' formats: its rows, and its column of ``down``."""
    return _neuron(block, lambda linear: _stored(linear, precision), _column(block.down, precision))


def _column(down: nn.Linear, precision: str) -> int:
    one = encode_by_neuron(down.weight[:, :1], precision)
    return one.codes.nbytes + one.block_scales.nbytes


def _output_scales(down: nn.Linear, precision: str) -> int:
    return encode_by_neuron(down.weight[:, :1], precision).nbytes - _column(down, precision)


def _bias(linear: nn.Linear) -> int:
    return 0 if linear.bias is None else linear.bias.numel() * 4  # float32 in every format
