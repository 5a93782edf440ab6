"""A policy: a method bound to one model. It reads prompts, which run dense, and answers with a plan for the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from ..calibration.cett import strengths
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .plan import ActiveSets, Footprint, Plan


class PromptReader(Protocol):
    """Sees the dense pass over one prompt, or over a batch of equally long ones, layer by layer."""

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        """The block's input ``x`` [texts, T, d] and its ``activations`` [texts, T, d_ff]."""
        ...

    def plan(self) -> Plan:
        """What follows from the layers seen so far."""
        ...


class Policy(Footprint, ABC):
    """``settles`` says that its plan has one active set a layer for all that follows."""

    settles: bool = False

    @abstractmethod
    def reader(self) -> PromptReader:
        """A new one, for one pass over prompts."""

    @abstractmethod
    def fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """How many neurons fire at each of a prompt's tokens, int64 [T]; ``x`` [T, d], ``activations`` [T, d_ff]."""


class Selector(Policy):
    """A sequence-level method: one active set a layer, chosen from the prompt's activations."""

    settles = True

    @abstractmethod
    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """The active set as bool [d_ff], from the prompt's ``activations`` [T, d_ff]."""

    def fired(
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
        return SetReader(self)

    def fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.fired(block, activations)


class SetReader(PromptReader):
    """Selects text by text: a set belongs to its own prompt."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.masks: list[torch.Tensor] = []

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        self.masks.append(torch.stack([self.choose(block, text) for text in activations]))

    def choose(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """Bool [d_ff] of one text's ``activations`` [T, d_ff]."""
        return self.selector.select(block, activations)

    def plan(self) -> Plan:
        return ActiveSets(tuple(self.masks))


class Everything(Selector):
    """The dense model as a policy: every neuron is active."""

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return torch.ones(block.d_ff, dtype=torch.bool, device=activations.device)
