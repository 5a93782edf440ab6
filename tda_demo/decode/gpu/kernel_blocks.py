"""Puts the GPU kernels in the place of a transformers model's feed-forward blocks, whatever the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ...kernels.gpu.blocks import ActiveBuffer, BlockMatrices, Scratch, Tiles, feed_forward, scratches
from ...model.family import BlockLayout, family_of
from ...model.feedforward import find_blocks, find_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


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
    own = scratches(weights, 1, tiles, dtype)
    for layer, each, scratch in zip(find_layers(model), weights, own, strict=True):
        active = ActiveBuffer.full(each.d_ff, each.device) if sparse else None
        kernel_block = KernelBlock(each, active, scratch, tiles)
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
