"""What a step reads of the weights: the one place that counts it, for arms, evaluations and budgets alike.

Only parts of a step are counted elsewhere: the blocks that ``bench.mlp_only`` runs alone, and the input channels of a
matrix that ``methods.teal.channels`` leaves out, which come here as ``unread`` bytes.

Everything a step reads counts, each parameter once, of an embedding table that is not the head one row; a method's own
predictors and sketches too. The count is arithmetic on shapes and storage formats, so it is known before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from ..kernels.formats import format_of
from ..methods.plan import StepTraits
from ..model.feedforward import FeedForward
from ..model.precision import NEARLY_EXACT, head_format
from ..model.stored import StoredEmbedding
from .shared_model import modules_of_a_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..kernels.gpu.blocks import BlockMatrices
    from ..model.loading import LoadedModel

_INDEX_BYTES = 2 * 4  # a neuron's number on a GPU, read by each of the two launches


@dataclass(frozen=True)
class NeuronBytes:
    """What one neuron of a layer takes in each matrix; ``gate`` is 0 in plain blocks."""

    gate: float
    up: float
    down: float

    @property
    def whole(self) -> float:
        return self.gate + self.up + self.down


@dataclass(frozen=True)
class StepTraffic:
    """What a step reads: weight ``bytes``, everything counted; share of the MLP's, what a method adds included."""

    bytes: float
    mlp_share: float


@dataclass(frozen=True)
class StepBytes:
    """Bytes a ``dense`` step reads; each of the ``widths[l]`` neurons of layer l takes ``neurons[l]``.

    ``packable`` says of every layer whether neurons outside an active set are left unread, ``runs_kernels`` whether the
    kernels of token-level methods run; else those are zeroed, which saves nothing. A neuron that contributes takes
    ``index_bytes`` for its place in a list. ``copies`` says whether a new active set is copied, not read where it lies.
    """

    dense: int
    neurons: tuple[NeuronBytes, ...]
    widths: tuple[int, ...]
    packable: tuple[bool, ...]
    runs_kernels: bool = False
    index_bytes: int = 0
    copies: bool = True

    @property
    def mlp(self) -> float:
        """Bytes of all neurons."""
        return sum(neuron.whole * width for neuron, width in zip(self.neurons, self.widths, strict=True))

    def copying(self, copied: Sequence[Sequence[float]], rest_bytes: Sequence[float] = ()) -> float:
        """Bytes read to make copies: of each layer so many neurons, and of so many low-bit ones of ``rest_bytes``; []
        where none are made, and none of layers only zeroed.
        """
        if not (copied and self.copies):
            return 0
        layers = zip(self.neurons, copied, rest_bytes or [0] * len(copied), self.packable, strict=True)
        return sum(neuron.whole * own + rest * low for neuron, (own, low), rest, is_copied in layers if is_copied)

    def sparse(self, counts: Sequence[int], plan: StepTraits) -> int:
        """Bytes a step reads that computes ``counts`` neurons of each layer, of an active set of ``plan``."""
        return round(self.read(plan, counts).bytes)

    def read(
        self,
        plan: StepTraits,
        kept: Sequence[float],
        unread: Sequence[float] = (),
        copied: Sequence[Sequence[float]] = (),
    ) -> StepTraffic:
        """Of a step under ``plan`` that uses ``kept`` neurons of each layer (means over texts are welcome).

        ``unread`` bytes of the MLP and of the rest, of a plan that leaves out other parts than neurons; ``copied``
        neurons of each layer, and low-bit ones, are read once more, to pack a new active set.
        """
        extra = plan.extra_bytes
        skipping = [self.runs_kernels and plan.has_kernel] * len(self.widths) if plan.token_level else self.packable
        if not any(skipping):
            return StepTraffic(self.dense + extra, 1 + extra / self.mlp)
        if unread:
            return StepTraffic(self.dense - sum(unread) + extra, 1 - (unread[0] - extra) / self.mlp)
        saved = -self.copying(copied, plan.rest_bytes)
        layers = zip(self.neurons, self.widths, kept, plan.rest_bytes or [0] * len(kept), skipping, strict=True)
        for neuron, width, count, rest, skips in layers:
            if skips:
                skipped = sum(size for matrix, size in asdict(neuron).items() if matrix not in plan.full)
                saved += (width - count) * (skipped - rest)
        listed = 0 if plan.token_level else self.index_bytes * sum(self.widths if plan.rest_bytes else kept)
        return StepTraffic(self.dense - saved + extra + listed, 1 - (saved - extra - listed) / self.mlp)


def held_bytes(lm: LoadedModel) -> StepBytes:
    """Where weights are read as torch holds them."""
    return StepBytes(
        dense=bytes_per_step(lm.model),
        neurons=tuple(_neuron(block, _held, block.down.weight.nbytes / block.d_ff) for block in lm.blocks),
        widths=_widths(lm),
        packable=tuple(block.can_be_packed for block in lm.blocks),
    )


def bytes_per_step(model: PreTrainedModel) -> int:
    """Weight bytes one step reads of a model as torch holds it."""
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(table) for table in tables if head is None or table is not head.weight}
    read = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in looked_up)
    return read + sum(table[0].nbytes for table in tables)


def stored_bytes(lm: LoadedModel, *, runs_kernels: bool) -> StepBytes:
    """Where the compiled kernels of a CPU read the weights, in their formats."""
    dense, neurons = _stored_in(lm, lm.precision)
    return StepBytes(dense, neurons, _widths(lm), (True,) * len(lm.blocks), runs_kernels)


_stored: WeakKeyDictionary[Any, dict[str, tuple[int, tuple[NeuronBytes, ...]]]] = WeakKeyDictionary()  # by precision


def fewer_stored_bytes(lm: LoadedModel) -> dict[str, int]:
    """What a dense step of the compiled kernels would read in nearly exact precisions, where it is less than now."""
    now = _stored_in(lm, lm.precision)[0]
    others = {name: _stored_in(lm, name)[0] for name in NEARLY_EXACT}
    return {name: read for name, read in others.items() if read < now}


def _stored_in(lm: LoadedModel, precision: str) -> tuple[int, tuple[NeuronBytes, ...]]:
    """Of a dense step, and of a neuron of every layer; counted once for a model, which takes a quarter of a second."""
    counts = _stored.setdefault(lm.model, {})
    if precision not in counts:
        counts[precision] = _count_stored(lm, precision)
    return counts[precision]


def _count_stored(lm: LoadedModel, precision: str) -> tuple[int, tuple[NeuronBytes, ...]]:
    """``_stored_in``, counted."""
    dense = 0
    downs = {block.down for block in lm.blocks}
    head = lm.model.get_output_embeddings()
    for _, module in modules_of_a_step(lm):
        if module in downs:
            dense += _stored_down(cast(nn.Linear, module), precision)
        elif isinstance(module, nn.Linear):
            dense += _stored_rows(module, head_format(precision) if module is head else precision)
        elif isinstance(module, nn.Embedding):
            dense += _table_row(module)
        else:
            dense += sum(parameter.nbytes for parameter in module.parameters(recurse=False))

    def rows(linear: nn.Linear) -> float:
        return _stored_rows(linear, precision)

    column = format_of(precision).column_bytes(lm.model.config.get_text_config().hidden_size)
    return dense, tuple(_neuron(block, rows, column) for block in lm.blocks)


def _table_row(table: nn.Embedding) -> int:
    """Bytes of one token's row."""
    if isinstance(table, StoredEmbedding):
        return table.stored.take(np.array([0])).nbytes
    return table.weight[0].nbytes


def kernel_bytes(model: PreTrainedModel, blocks: Sequence[FeedForward], weights: Sequence[BlockMatrices]) -> StepBytes:
    """Where the GPU kernels read ``weights``, the feed-forward ``blocks`` of ``model``, in the storage they have."""
    inside = {linear for block in blocks for linear in block.linears}
    shared = bytes_per_step(model) - sum(parameter.nbytes for linear in inside for parameter in linear.parameters())
    shared += sum(layer.output_bytes for layer in weights) + _scale_bytes(model, inside)
    return StepBytes(
        dense=shared + sum(layer.d_ff * layer.neuron_bytes for layer in weights),
        neurons=tuple(NeuronBytes(0, 0, layer.neuron_bytes) for layer in weights),
        widths=tuple(layer.d_ff for layer in weights),
        packable=(True,) * len(weights),
        index_bytes=_INDEX_BYTES,
        copies=False,
    )


def _scale_bytes(model: PreTrainedModel, inside: set[nn.Linear]) -> int:
    """What the scales of quantised matrices other than ``inside`` take; they are no parameters."""
    from ..kernels.gpu.int8 import is_int8, largest_of

    outside = [module for module in model.modules() if module not in inside]
    states: list[Any] = [getattr(getattr(module, "weight", None), "quant_state", None) for module in outside]
    states = [state for state in states if state is not None]
    nested = sum(state.state2.absmax.nbytes for state in states if state.nested)
    rows = sum(largest_of(module).nbytes for module in outside if isinstance(module, nn.Linear) and is_int8(module))
    return rows + nested + sum(state.absmax.nbytes for state in states)


def _widths(lm: LoadedModel) -> tuple[int, ...]:
    return tuple(block.d_ff for block in lm.blocks)


def _neuron(block: FeedForward, rows: Callable[[nn.Linear], float], column: float) -> NeuronBytes:
    """``rows`` gives the bytes of a matrix of rows and its bias, ``column`` those of a neuron in ``down``."""
    gate, up = (
        0.0 if projection is None else rows(projection.linear) / projection.linear.out_features
        for projection in (block.gate, block.up)
    )
    return NeuronBytes(gate, up, column)


def _held(linear: nn.Linear) -> float:
    return sum(part.nbytes for part in linear.parameters(recurse=False))


def _stored_rows(linear: nn.Linear, precision: str) -> int:
    """Bytes of a matrix whose rows are stored one like the other, and of its bias."""
    return format_of(precision).row_bytes(linear.in_features) * linear.out_features + _bias(linear)


def _stored_down(down: nn.Linear, precision: str) -> int:
    """Bytes of a down projection, which is stored by neuron, and of its bias."""
    stored = format_of(precision)
    column = stored.column_bytes(down.out_features)
    output_scales = stored.encode_by_neuron(torch.zeros(down.out_features, 1)).nbytes - column
    return column * down.in_features + output_scales + _bias(down)


def _bias(linear: nn.Linear) -> int:
    return 0 if linear.bias is None else linear.bias.numel() * 4  # float32 in every format
