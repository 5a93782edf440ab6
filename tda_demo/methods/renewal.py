"""Active sets that are chosen anew while the text is written: a prompt's inertia made adaptive. Ours, for TDA.

Neurons that are not computed cannot be observed. So every N-th step runs dense; its activations enter the running
score, and the sets are chosen anew by the limits found for the prompt. The bytes and the time of that step are counted,
and those of packing the new sets. Our reading of how activations enter: the score is a mean over tokens, and a dense
step stands for the N tokens since the last one, so it counts N times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ..cett import strengths
from ..feedforward import FeedForward
from ..later import torch
from .sets import ActiveSets

if TYPE_CHECKING:
    from .base import Selector
    from .token import TokenRule


@dataclass(frozen=True, eq=False)
class History:
    """A layer's running score: ``squares`` float32 [d_ff], of strengths summed over ``tokens`` tokens.

    A neuron is active whose root mean square reaches ``limit``; ``norms`` float32 [d_ff] weight the strengths, if any.
    """

    limit: float
    norms: torch.Tensor | None
    squares: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, limit: float, norms: torch.Tensor | None, activations: torch.Tensor) -> History:
        """Of a prompt's ``activations`` [T, d_ff]."""
        return cls(limit, norms, strengths(activations, norms).square().sum(dim=0), len(activations))

    def seen(self, activations: torch.Tensor, times: int) -> History:
        """With one token's ``activations`` [1, d_ff] counted ``times`` times."""
        squares = self.squares + times * strengths(activations, self.norms).square().sum(dim=0)
        return replace(self, squares=squares, tokens=self.tokens + times)

    def active(self) -> torch.Tensor:
        """Bool [d_ff]."""
        return (self.squares / self.tokens).sqrt() >= self.limit


@dataclass(frozen=True, eq=False)
class RenewedSets(ActiveSets):
    """Active sets for ``every - 1`` steps, after which one runs dense and gives the next ones; nothing is changed in
    place, so arms may start from the same.
    """

    histories: tuple[History, ...]
    every: int

    @classmethod
    def begun(cls, masks: Sequence[torch.Tensor], histories: Sequence[History], every: int) -> RenewedSets:
        """With the prompt's own ``masks`` bool [d_ff]."""
        chosen = ActiveSets.of(masks)
        return cls(chosen.indices, chosen.d_ff, tuple(histories), every)

    def renewed(self, activations: Sequence[torch.Tensor]) -> RenewedSets:
        """After a dense step with these ``activations`` [1, d_ff] of every layer."""
        histories = [old.seen(a, self.every) for old, a in zip(self.histories, activations, strict=True)]
        return self.begun([each.active() for each in histories], histories, self.every)


class Remembering(Protocol):
    """A selector whose score can go on after the prompt."""

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor: ...

    def fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor: ...

    def history(self, block: FeedForward, activations: torch.Tensor) -> History:
        """Of the prompt last selected for."""
        ...


class Renewing:
    """``selector``, its choice renewed every so many tokens."""

    def __init__(self, selector: Remembering, every: int) -> None:
        self.every = every
        self.select, self.fired, self.history = selector.select, selector.fired, selector.history


class Choosing:
    """What a selector makes of one prompt, layer by layer."""

    def __init__(self, selector: Selector | Renewing | TokenRule) -> None:
        self.selector = selector
        self.masks: list[torch.Tensor] = []
        self.histories: list[History] = []

    def see(self, block: FeedForward, activations: torch.Tensor) -> None:
        """``activations`` [T, d_ff]."""
        selector: Selector = self.selector  # type: ignore[assignment]
        self.masks.append(selector.select(block, activations))
        if isinstance(self.selector, Renewing):
            self.histories.append(self.selector.history(block, activations))

    def sets(self) -> ActiveSets:
        if isinstance(self.selector, Renewing):
            return RenewedSets.begun(self.masks, self.histories, self.selector.every)
        return ActiveSets.of(self.masks)
