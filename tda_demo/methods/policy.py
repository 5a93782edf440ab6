"""A policy: a method bound to one model. It reads prompts, which run dense, and answers with a plan for the rest.

Sequence-level policies are in ``sequence``, token-level ones in ``token``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .plan import Plan, StepTraits


class PromptReader(Protocol):
    """Observes the dense pass over one prompt, or over a batch of equally long ones, layer by layer."""

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        """The block's input ``x`` [texts, T, d] and its ``activations`` [texts, T, d_ff].

        The next block's may take their memory: what is kept of them has to be a copy.
        """
        ...

    def plan(self) -> Plan:
        """What follows from the layers seen so far."""
        ...


class Policy(StepTraits, ABC):
    """A method bound to one model."""

    @abstractmethod
    def reader(self) -> PromptReader:
        """A new one, for one pass over prompts."""

    @abstractmethod
    def count_fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """How many neurons fire at each of a prompt's tokens, int64 [T]; ``x`` [T, d], ``activations`` [T, d_ff]."""
