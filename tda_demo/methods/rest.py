"""What neurons outside an active set contribute, where that is something."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

from ..model.feedforward import FeedForward
from ..support.lazy import nn, torch


class Rest(Protocol):
    """What the neurons outside an active set contribute, in a cheaper way than their own weights."""

    @property
    def neuron_bytes(self) -> tuple[float, ...]:
        """What a step reads of such a neuron, by layer."""
        ...

    def output(self, block: FeedForward, x: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        """What the neurons ``left_out`` bool [texts, d_ff] add for the block's input ``x`` [texts, T, d], T tokens of
        each text: float32 [texts, T, d].
        """
        ...


def rest_note(rest: Rest | None) -> str:
    """A plan's note on its ``rest``."""
    return "" if rest is None else "the neurons left out contribute what a 4-bit copy of them says"


def add_rest(block: FeedForward, mask: torch.Tensor, rest: Rest | None) -> ExitStack:
    """Until the result is closed the block's output holds what ``rest`` says of the neurons outside ``mask``.

    ``mask`` is bool [texts, d_ff].
    """
    with ExitStack() as hooks:
        if rest is None or mask.all():
            return hooks.pop_all()
        added: list[torch.Tensor] = []

        def before(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].view(len(mask), -1, inputs[0].shape[-1])  # opt flattens its batch
            added[:] = [rest.output(block, x, ~mask)]

        def after(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + added.pop().view_as(output).to(output.dtype)

        hooks.callback(block.linears[0].register_forward_pre_hook(before).remove)
        hooks.callback(block.down.register_forward_hook(after).remove)
        return hooks.pop_all()
