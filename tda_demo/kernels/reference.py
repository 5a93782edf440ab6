"""Packed execution in plain torch: the block's own modules, holding copies of the active rows and columns only.

Nothing of the block's forward code changes, so a restricted block runs on exactly the kernels the full one runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..model.feedforward import FeedForward
from ..support.lazy import nn, torch


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """Weights of one linear restricted to some rows or columns; ``bias`` as the linear has it, restricted alike."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def pack(block: FeedForward, indices: torch.Tensor) -> tuple[PackedLinear, ...]:
    """Copies of the active neurons' weights, aligned with ``block.linears``.

    Args:
        indices: int64 [k], the active neurons.
    """
    first = tuple(_rows(linear, block.rows_of(linear, indices)) for linear in block.input_linears)
    return (*first, PackedLinear(block.down.weight.detach().index_select(1, indices), block.down.bias))


def _rows(linear: nn.Linear, rows: torch.Tensor) -> PackedLinear:
    bias = None if linear.bias is None else linear.bias.detach().index_select(0, rows)
    return PackedLinear(linear.weight.detach().index_select(0, rows), bias)


def limit(block: FeedForward, indices: torch.Tensor) -> Callable[[], None]:
    """Makes ``block`` compute the neurons ``indices`` int64 [k] only; the returned function undoes it.

    Blocks that bitsandbytes has quantised or accelerate has offloaded compute all neurons and have the activations of
    the others zeroed: the same function, with nothing saved.
    """
    return install(block, pack(block, indices)) if block.can_be_packed else mask(block, indices)


def mask(block: FeedForward, indices: torch.Tensor) -> Callable[[], None]:
    """Zeroes the activations of all neurons but ``indices``; the returned function ends that."""

    def keep_active(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        kept = torch.zeros_like(inputs[0])
        return kept.index_copy(-1, indices, inputs[0].index_select(-1, indices))

    return block.down.register_forward_pre_hook(keep_active).remove


def install(block: FeedForward, packed: tuple[PackedLinear, ...]) -> Callable[[], None]:
    """Puts ``packed`` in the place of the block's weights; the returned function puts the old ones back."""
    before = [(linear, linear.weight, linear.bias) for linear in block.linears]
    for linear, part in zip(block.linears, packed, strict=True):
        _set(linear, part.weight, part.bias)

    def restore() -> None:
        for linear, weight, bias in before:
            _set(linear, weight, bias)

    return restore


def _set(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    linear.weight = _parameter(weight)
    linear.register_parameter("bias", None if bias is None else _parameter(bias))
    linear.out_features, linear.in_features = weight.shape


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
