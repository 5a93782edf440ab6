"""A transformers model's feed-forward blocks on the GPU kernels, whatever the family.

Their weights as the kernels read them, in the storage the model was loaded in, and modules that take the blocks' place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...kernels.activations import activation_of
from ...kernels.gpu.blocks import ActiveBuffer, BlockMatrices, Scratch, Tiles, feed_forward, scratches
from ...kernels.gpu.choice import KernelChoice, choose_float, choose_int8, choose_nf4
from ...kernels.gpu.int8 import Int8Matrices, is_int8
from ...kernels.gpu.matrices import Matrices
from ...kernels.gpu.nf4 import BLOCK, Nf4Matrices, Requantisation, is_nf4
from ...kernels.gpu.rest import MatricesWithRest
from ...model.family import BlockLayout, family_of
from ...model.feedforward import FeedForward, find_blocks, find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...model.loading import LoadedModel

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """``weights`` of every block, first layer first; ``changes`` one a block where down had to be quantised again."""

    weights: Sequence[BlockMatrices]
    changes: tuple[Requantisation, ...]
    dtype: torch.dtype
    blocks: tuple[FeedForward, ...]

    def choose(self) -> KernelChoice:
        """The fastest way for each arm on this card, measured."""
        floats = [block for block in self.weights if isinstance(block, Matrices)]
        if floats:
            return choose_float(floats)
        if self.int8:
            return choose_int8(self.weights, self.dtype)
        return choose_nf4(self.weights, self.dtype, self.blocks)

    @property
    def int8(self) -> bool:
        """Whether they are LLM.int8, whose product in the prompt and in attention waits for the device."""
        return isinstance(self.weights[0], Int8Matrices)


def readable(lm: LoadedModel) -> bool:
    """Whether the kernels know the storage of every block of ``lm``: a float dtype, LLM.int8, NF4 in blocks of 64."""
    linears = [linear for block in lm.blocks for linear in block.linears]
    if all(type(linear) is nn.Linear and linear.weight.dtype in _DTYPES for linear in linears):
        return True
    if all(is_int8(linear) for linear in linears):
        return True
    return all(is_nf4(linear) for linear in linears) and lm.model.config.hidden_size % BLOCK == 0


def read_blocks(lm: LoadedModel) -> BlockWeights:
    """Views of the weights of ``lm`` where they can be read as they are.

    In float dtypes down projections are laid out by neuron in place; NF4 ones are quantised again.
    """
    activation = activation_of(lm.model.config)
    assert activation is not None  # see graph.supported
    weights: Sequence[BlockMatrices]
    changes: tuple[Requantisation, ...] = ()
    if is_int8(lm.blocks[0].down):
        weights = [Int8Matrices.of(block, activation) for block in lm.blocks]
    elif is_nf4(lm.blocks[0].down):
        requantised = [Nf4Matrices.of(block, activation) for block in lm.blocks]
        weights, changes = [matrices for matrices, _ in requantised], tuple(change for _, change in requantised)
    else:
        weights = [Matrices.of(block, activation) for block in lm.blocks]
    return BlockWeights(weights, changes, lm.model.dtype, lm.blocks)


def with_rest(blocks: BlockWeights, copies: Sequence[Nf4Matrices]) -> list[MatricesWithRest]:
    """``blocks``, whose weights have a float dtype, each with the copy of it."""
    pairs = zip(blocks.weights, copies, strict=True)
    return [MatricesWithRest(exact, copy) for exact, copy in pairs if isinstance(exact, Matrices)]


class KernelBlock(nn.Module):
    """A feed-forward block [1, ..., d] -> [1, ..., d] for one token; ``active`` None computes all neurons.

    Its output lies in memory of its own that the next call overwrites.
    """

    def __init__(self, weights: BlockMatrices, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> None:
        super().__init__()
        self.weights, self.active, self.scratch, self.tiles = weights, active, scratch, tiles

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, self.weights.width)
        return feed_forward(self.weights, rows, self.active, self.scratch, self.tiles).view(hidden_states.shape)


def install_kernels(
    model: PreTrainedModel, weights: Sequence[BlockMatrices], tiles: Tiles, dtype: torch.dtype, *, sparse: bool
) -> list[KernelBlock]:
    """Replaces every block of ``model`` in place; sparse ones start with all their neurons active."""
    layout = family_of(model).block
    installed = []
    memory = scratches(weights, tiles, dtype)
    for layer, matrices, scratch in zip(find_layers(model), weights, memory, strict=True):
        active = ActiveBuffer.full(matrices.d_ff, matrices.device) if sparse else None
        kernel_block = KernelBlock(matrices, active, scratch, tiles)
        _replace(layout, layer, kernel_block)
        installed.append(kernel_block)
    return installed


def use_usual_layout(model: PreTrainedModel, downs: Sequence[torch.Tensor]) -> None:
    """Gives the down projections of ``model``, and of no model that shares weights with it, other copies [d, d_ff]."""
    for block, down in zip(find_blocks(model), downs, strict=True):
        block.down.weight = nn.Parameter(down, requires_grad=False)


def _replace(layout: BlockLayout, layer: nn.Module, new: nn.Module) -> None:
    """A block that is a module of its own is replaced whole; one spread over its layer part by part."""
    if layout.module:
        layer.set_submodule(layout.module, new)
        return
    assert layout.function is not None
    layer.set_submodule(layout.up, new)
    for path in (layout.function, layout.down):
        layer.set_submodule(path, nn.Identity())
