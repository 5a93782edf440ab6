"""Policies that keep a given share of every layer's neurons: those of most evidence, fixed ones, or all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .sequence import Choice, EvidencePolicy, SequencePolicy


class DensePolicy(SequencePolicy):
    """The dense model as a policy: every neuron is active."""

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return torch.ones(block.d_ff, dtype=torch.bool, device=activations.device)


def highest(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """The ``int(keep * d_ff)`` highest of ``scores`` [d_ff] as bool [d_ff]; of equal ones those of lower index."""
    order = scores.argsort(descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, order[: int(keep * len(scores))], True)


class FixedPolicy(SequencePolicy):
    """Keeps of layer l the share ``keep[l]`` of the neurons, those highest in ``scores[l]`` [d_ff], for any prompt."""

    def __init__(self, scores: Sequence[torch.Tensor], keep: Sequence[float]) -> None:
        self.scores = scores
        self.keep = keep

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return highest(self.scores[block.layer].to(activations.device), self.keep[block.layer])


class RankedPolicy(EvidencePolicy):
    """Keeps of layer l the share ``keep[l]`` of the neurons, those with most ``evidence``, a function of block and
    activations as ``SequencePolicy.evidence`` is.
    """

    def __init__(self, evidence: Callable[[FeedForward, torch.Tensor], torch.Tensor], keep: Sequence[float]) -> None:
        self._evidence = evidence
        self.keep = keep

    def evidence(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return self._evidence(block, activations)

    def choice(self, block: FeedForward, activations: torch.Tensor, evidence: torch.Tensor) -> Choice:
        # The root, as GRIFFIN's score has it, orders them as the mean does but for rounding.
        return lambda mean: highest(mean.sqrt(), self.keep[block.layer])
