"""What a step reads of the weights, by arithmetic: the same count as the engines', without making their copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from ..decode.eager import bytes_per_step
from ..feedforward import FeedForward
from ..kernels.formats import encode, encode_by_neuron
from ..precision import head_format

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True)
class StepBytes:
    """Bytes a dense step reads, and how many of them each neuron of each layer accounts for."""

    dense: int
    neuron: tuple[float, ...]

    def sparse(self, dropped: Sequence[float]) -> float:
        """Bytes of a step that computes all but ``dropped`` neurons of each layer (means over texts are welcome)."""
        return self.dense - sum(bytes_each * count for bytes_each, count in zip(self.neuron, dropped, strict=True))


def step_bytes(lm: LoadedModel) -> StepBytes:
    """Counts the weights of ``lm`` as they are stored at its precision: on a CPU in the kernels' formats."""
    if lm.device.type != "cpu":
        return StepBytes(bytes_per_step(lm.model), tuple(_held(block) for block in lm.blocks))
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
    return StepBytes(dense, tuple(_stored_neuron(block, lm.precision) for block in lm.blocks))


def _held(block: FeedForward) -> float:
    """Bytes of a neuron where weights are read as torch holds them; of ``down`` its column, no bias."""
    first = sum(part.nbytes for linear in block.linears[:-1] for part in linear.parameters(recurse=False))
    return (first + block.down.weight.nbytes) / block.d_ff


def _stored(linear: nn.Linear, precision: str) -> int:
    """Bytes of a matrix whose rows are stored one like the other, and of its bias."""
    return encode(linear.weight[:1], precision).nbytes * linear.out_features + _bias(linear)


def _stored_down(linear: nn.Module, precision: str) -> int:
    """Bytes of a down projection, which is stored by neuron, and of its bias."""
    down = cast(nn.Linear, linear)
    return _column(down, precision) * down.in_features + _output_scales(down, precision) + _bias(down)


def _stored_neuron(block: FeedForward, precision: str) -> float:
    """Bytes of a neuron in the kernels' formats: its rows, and its column of ``down``."""
    rows = sum(_stored(linear, precision) for linear in block.linears[:-1])
    return rows / block.d_ff + _column(block.down, precision)


def _column(down: nn.Linear, precision: str) -> int:
    one = encode_by_neuron(down.weight[:, :1], precision)
    return one.codes.nbytes + one.block_scales.nbytes


def _output_scales(down: nn.Linear, precision: str) -> int:
    return encode_by_neuron(down.weight[:, :1], precision).nbytes - _column(down, precision)


def _bias(linear: nn.Linear) -> int:
    return 0 if linear.bias is None else linear.bias.numel() * 4  # float32 in every format
