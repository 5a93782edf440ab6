"""What the methods share that keep a fixed share of a layer's neurons, those that a score of theirs ranks highest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .policy import Selector


def highest(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """The ``int(keep * d_ff)`` highest of ``scores`` [d_ff] as bool [d_ff]; of equal ones those of lower index."""
    order = scores.argsort(descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, order[: int(keep * len(scores))], True)


class Ranked(Selector):
    """Keeps of layer l the share ``keep[l]`` of the neurons, those highest in ``score(block, activations)`` [d_ff]."""

    def __init__(self, score: Callable[[FeedForward, torch.Tensor], torch.Tensor], keep: Sequence[float]) -> None:
        self.score = score
        self.keep = keep

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return highest(self.score(block, activations), self.keep[block.layer])
