"""Packed execution in plain torch: the block's own modules, holding copies of the active rows and columns only.

Nothing of the block's forward code changes, so a restricted block runs on exactly the kernels the full one runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..model.feedforward import FeedForward
from ..support.lazy import nn, torch
from .formats import ByNeuron, Rows


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """Weights of one linear restricted to some rows or columns; ``bias`` as the linear has it, restricted alike.

    ``weight`` is a tensor of ``shape`` [outputs, inputs], or the codes of one where the linear holds codes.
    """

    weight: torch.Tensor | Rows | ByNeuron
    bias: torch.Tensor | None
    shape: tuple[int, int]


def pack(block: FeedForward, indices: torch.Tensor) -> tuple[PackedLinear, ...]:
    """Copies of the active neurons' weights, aligned with ``block.linears``.

    Args:
        indices: int64 [k], the active neurons.
    """
    first = tuple(_rows(linear, block.rows_of(linear, indices)) for linear in block.input_linears)
    return (*first, _columns(block.down, indices))


def _rows(linear: nn.Linear, rows: torch.Tensor) -> PackedLinear:
    bias = None if linear.bias is None else linear.bias.detach().index_select(0, rows)
    whole = _weight(linear)
    part = whole.detach().index_select(0, rows) if isinstance(whole, torch.Tensor) else whole.take(rows.numpy())
    return PackedLinear(part, bias, (len(rows), linear.in_features))


def _columns(down: nn.Linear, neurons: torch.Tensor) -> PackedLinear:
    whole = _weight(down)
    part = whole.take(neurons.numpy()) if isinstance(whole, ByNeuron) else whole.detach().index_select(1, neurons)
    return PackedLinear(part, down.bias, (down.out_features, len(neurons)))


def _weight(linear: nn.Linear) -> Any:
    """The parameter, or the codes."""
    return linear.weight if (stored := getattr(linear, "stored", None)) is None else stored


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
    before = [
        (linear, PackedLinear(_weight(linear), linear.bias, (linear.out_features, linear.in_features)))
        for linear in block.linears
    ]
    for linear, part in zip(block.linears, packed, strict=True):
        _set(linear, part)

    def restore() -> None:
        for linear, part in before:
            _set(linear, part)

    return restore


def _set(linear: nn.Linear, part: PackedLinear) -> None:
    if isinstance(part.weight, torch.Tensor):
        linear.weight = _parameter(part.weight)
    else:
        holder: Any = linear  # a StoredLinear, which torch is imported for
        holder.stored = part.weight
    linear.register_parameter("bias", None if part.bias is None else _parameter(part.bias))
    linear.out_features, linear.in_features = part.shape


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
