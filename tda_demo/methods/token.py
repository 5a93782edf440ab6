"""The contract of a token-level method: which neurons fire is decided anew at every token.

The prompt runs dense; from then on every block asks the rule, which may look at the block's input alone (what a kernel
can do before it reads any weight) or at what part of the block has already computed. Here a block computes everything
and the rest is zeroed, which is the specification; a compiled kernel skips it.

Most rules choose neurons and say so with ``fire`` alone; what else a rule may leave out it says by overriding the rest
(``channels``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..feedforward import FeedForward
from ..later import nn, torch


@dataclass(frozen=True, eq=False)
class Use:
    """What a rule used of a layer at T tokens: ``neurons`` float64 [T], of a rule that leaves out less or more than
    whole neurons as many as would take the weights it used of the block.

    ``unread`` float64 [T, 2]: weight bytes it left unread in the block, and in the layer's other matrices; None where
    that follows from ``neurons``.
    """

    neurons: torch.Tensor
    unread: torch.Tensor | None = None


See = Callable[[FeedForward, Use], None]
Change = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor | None"]


class TokenRule(ABC):
    """A token-level method bound to one model.

    ``full`` names the matrices that are read whatever fires, of ``gate`` and ``up``; a computed neuron's row or column
    of the others is read too. ``extra_bytes`` is what a step reads besides the model's weights: predictors, sketches.
    ``kernel`` holds the arrays of the compiled CPU kernel, a type of ``kernels.cpu.token``; None where there is none.
    ``whole`` says that it computes a neuron whole or not at all: it then works on a copy of the MLP's weights in which
    a neuron lies in one piece. ``order`` int64 [d_ff] of every layer is how neurons have to lie in that copy; None
    where they may lie as they do. ``note`` is a sentence on what it took to make the rule.
    """

    full: frozenset[str] = frozenset()
    extra_bytes: int = 0
    whole: bool = False
    order: tuple[torch.Tensor, ...] | None = None
    note: str = ""

    @property
    def kernel(self) -> Any:
        return None

    @cached_property
    def has_kernel(self) -> bool:
        """Whether ``kernel`` is not None; a rule overrides it whose kernel takes copying the model's weights."""
        return self.kernel is not None

    @abstractmethod
    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The neurons whose column of down is read, bool [T, d_ff], of a block with input ``x`` [T, d] and
        ``activations`` [T, d_ff].
        """

    def use(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> Use:
        """What it would use of the block alone where these are the dense model's input and activations."""
        return Use(self.fire(block, x, activations).sum(dim=1).double())

    def restricted(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """What takes the place of the dense model's ``activations``: [T, d_ff]."""
        return activations * self.fire(block, x, activations)

    def rest(self, block: FeedForward, x: torch.Tensor, fired: torch.Tensor) -> torch.Tensor | None:
        """What the neurons that are not ``fired`` [T, d_ff] still add to the block's output, float [T, d], in some
        cheaper way; None where they add nothing.
        """
        return None

    def lacking(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """What the block's output lacks where these are the dense model's input and activations: float32 [T, d]."""
        left_out = activations.float() - self.restricted(block, x, activations).float()
        rest = self.rest(block, x, self.fire(block, x, activations))
        lacks = left_out @ block.output_weight().T
        return lacks if rest is None else lacks - rest

    def install(self, blocks: Iterable[FeedForward], see: See | None = None) -> Callable[[], None]:
        """Makes every layer use what the rule chooses only; ``see(block, use)`` gets it. The result undoes it."""
        with ExitStack() as hooks:
            for block in blocks:
                rest: list[torch.Tensor] = []
                hooks.callback(between(block, self._fired_only(block, see, rest)))
                hooks.callback(block.down.register_forward_hook(_adding(rest)).remove)
            return hooks.pop_all().close

    @contextmanager
    def on(self, blocks: Iterable[FeedForward], see: See | None = None) -> Iterator[None]:
        """``install`` for the time of a context."""
        undo = self.install(blocks, see)
        try:
            yield
        finally:
            undo()

    def _fired_only(self, block: FeedForward, see: See | None, rest: list[torch.Tensor]) -> Change:
        def change(x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
            fired = self.fire(block, x, activations.reshape(len(x), -1))
            if see is not None:
                see(block, Use(fired.sum(dim=1).double()))
            if (added := self.rest(block, x, fired)) is not None:
                rest.append(added)
            return activations * fired.view_as(activations)

        return change


def _adding(rest: list[torch.Tensor]) -> Callable[..., torch.Tensor | None]:
    def hook(_module: nn.Module, _arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        return output + rest.pop().view_as(output).to(output.dtype) if rest else None

    return hook


def between(block: FeedForward, change: Change) -> Callable[[], None]:
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
