"""Looking into the feed-forward blocks of a transformers model while it runs, and changing what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..support.lazy import nn, torch
from .feedforward import FeedForward

Change = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor | None"]


@contextmanager
def observe(blocks: Iterable[FeedForward], see: Callable[[FeedForward, torch.Tensor], None]) -> Iterator[None]:
    """Within the context, ``see(block, a)`` gets the activations ``a`` [tokens, d_ff] of every block that runs.

    The input of the down projection is ``a`` in every family, so one hook serves them all.
    """

    def hook(block: FeedForward) -> Callable[..., None]:
        return lambda _module, inputs: see(block, inputs[0].reshape(-1, block.down.in_features))

    handles = [block.down.register_forward_pre_hook(hook(block)) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def intercept(block: FeedForward, change: Change) -> Callable[[], None]:
    """``change(x, a)`` gets the block's input ``x`` [tokens, d] and its activations ``a`` [..., d_ff] whenever it runs;
    what it returns, if anything, takes the activations' place. The result undoes it.
    """
    inputs: list[torch.Tensor] = []

    def before(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs[:] = [arguments[0].reshape(-1, arguments[0].shape[-1])]

    def after(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        return change(inputs.pop(), arguments[0])

    handles = [block.linears[0].register_forward_pre_hook(before), block.down.register_forward_pre_hook(after)]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
