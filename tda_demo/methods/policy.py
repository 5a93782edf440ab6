"""A policy: a method bound to one model. It reads prompts, which run dense, and answers with a plan for the rest.

Sequence-level policies are here; token-level ones in ``token``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from ..calibration.cett import strengths
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .plan import ActiveSets, Plan, StepTraits


class PromptReader(Protocol):
    """Observes the dense pass over one prompt, or over a batch of equally long ones, layer by layer."""

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        """The block's input ``x`` [texts, T, d] and its ``activations`` [texts, T, d_ff]."""
        ...

    def plan(self) -> Plan:
        """What follows from the layers seen so far."""
        ...


class Policy(StepTraits, ABC):
    """A method bound to one model. ``settles``: whether its plan has one active set a layer for all that follows."""

    settles: bool = False

    @abstractmethod
    def reader(self) -> PromptReader:
        """A new one, for one pass over prompts."""

    @abstractmethod
    def count_fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """How many neurons fire at each of a prompt's tokens, int64 [T]; ``x`` [T, d], ``activations`` [T, d_ff]."""


class SequencePolicy(Policy):
    """A sequence-level method: one active set a layer, chosen from the prompt's activations."""

    settles = True

    @abstractmethod
    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """The active set as bool [d_ff], from the prompt's ``activations`` [T, d_ff]."""

    def count_fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How many neurons fire at each token, int64 [T]: those whose activation at that token is strong.

        ``activations`` [T, k] holds the neurons ``computed`` int64 [k] (None: all of them). Unless a method has a
        threshold for a token, strong is at least the token's root mean square, whatever the method's score, so that
        heatmaps can be compared.
        """
        strength = strengths(activations)
        return ((strength >= block.d_ff**-0.5) & (strength > 0)).sum(dim=1)

    def reader(self) -> PromptReader:
        return ActiveSetReader(self)

    def count_fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.count_fired(block, activations)


class ActiveSetReader(PromptReader):
    """Selects text by text: a set belongs to its own prompt."""

    def __init__(self, policy: SequencePolicy) -> None:
        self.policy = policy
        self.masks: list[torch.Tensor] = []

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        self.masks.append(torch.stack([self.select(block, text) for text in activations]))

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """Bool [d_ff] of one text's ``activations`` [T, d_ff]."""
        return self.policy.select(block, activations)

    def plan(self) -> Plan:
        return ActiveSets(tuple(self.masks))


class DensePolicy(SequencePolicy):
    """The dense model as a policy: every neuron is active."""

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return torch.ones(block.d_ff, dtype=torch.bool, device=activations.device)


def highest(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """The ``int(keep * d_ff)`` highest of ``scores`` [d_ff] as bool [d_ff]; of equal ones those of lower index."""
    order = scores.argsort(descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, order[: int(keep * len(scores))], True)


class RankedPolicy(SequencePolicy):
    """Keeps of layer l the share ``keep[l]`` of the neurons, those highest in ``score(block, activations)`` [d_ff]."""

    def __init__(self, score: Callable[[FeedForward, torch.Tensor], torch.Tensor], keep: Sequence[float]) -> None:
        self.score = score
        self.keep = keep

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return highest(self.score(block, activations), self.keep[block.layer])
