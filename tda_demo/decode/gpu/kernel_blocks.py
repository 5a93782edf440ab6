"""Puts the GPU kernels in the place of a transformers model's feed-forward blocks, whatever the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...feedforward import FeedForward, find_blocks
from ...kernels.gpu.blocks import ActiveBuffer, Scratch, Tiles, Weights, feed_forward, scratches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


class KernelBlock(nn.Module):
    """A feed-forward block [1, ..., d] -> [1, ..., d] for one token; ``active`` None computes all neurons.

    Its output lies in memory of its own that the next call overwrites.
    """

    def __init__(self, weights: Weights, active: ActiveBuffer | None, scratch: Scratch, tiles: Tiles) -> None:
        super().__init__()
        self.weights, self.active, self.scratch, self.tiles = weights, active, scratch, tiles

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, self.weights.width)
        return feed_forward(self.weights, rows, self.active, self.scratch, self.tiles).view(hidden_states.shape)


def install_kernels(
    model: PreTrainedModel, weights: Sequence[Weights], tiles: Tiles, dtype: torch.dtype, *, sparse: bool
) -> list[KernelBlock]:
    """Replaces every block of ``model`` in place; sparse ones start with all their neurons active."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    installed = []
    own = scratches(weights, 1, tiles, dtype)
    for block, each, scratch in zip(find_blocks(model), weights, own, strict=True):
        active = ActiveBuffer.full(each.d_ff, each.device) if sparse else None
        kernel_block = KernelBlock(each, active, scratch, tiles)
        _replace(model, block, names, kernel_block)
        installed.append(kernel_block)
    return installed


def use_usual_layout(model: PreTrainedModel, downs: Sequence[torch.Tensor]) -> None:
    """Gives the down projections of ``model``, and of no model that shares weights with it, other copies [d, d_ff]."""
    for block, down in zip(find_blocks(model), downs, strict=True):
        block.down.weight = nn.Parameter(down, requires_grad=False)


def _replace(model: PreTrainedModel, block: FeedForward, names: dict[nn.Module, str], new: nn.Module) -> None:
    """A block that is a module of its own is replaced whole; one spread over its layer (opt) part by part."""
    owner_name, _, down = names[block.down].rpartition(".")
    layer_name, _, own = owner_name.rpartition(".")
    if own == "mlp":
        setattr(model.get_submodule(layer_name), own, new)
        return
    layer: Any = model.get_submodule(owner_name)
    setattr(layer, names[block.up].rpartition(".")[2], new)
    setattr(layer, down, nn.Identity())
    layer.activation_fn = nn.Identity()
