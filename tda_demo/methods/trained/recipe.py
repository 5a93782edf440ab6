"""What a trained method learns of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ...model.feedforward import FeedForward
from ...support.lazy import torch


@dataclass(frozen=True, eq=False)
class Lesson:
    """What there is to learn a layer from.

    ``x`` [tokens, d] are the block's inputs, ``strength`` float32 [tokens, d_ff] the ``|a_j| n_j`` they lead to. The
    last ``held_out`` tokens, of texts of their own, are for the curves and for stopping, not for learning.
    """

    block: FeedForward
    x: torch.Tensor
    strength: torch.Tensor
    is_relu: bool
    held_out: int


@dataclass(frozen=True, eq=False)
class Learned:
    """A layer's ``tensors`` by name, and after every epoch the loss and the recall on held-out tokens, 0..1."""

    tensors: dict[str, torch.Tensor]
    loss: tuple[float, ...]
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Recipe(ABC):
    """All that the outcome of training depends on, besides the model."""

    name: ClassVar[str]

    epochs: int
    seed: int

    @abstractmethod
    def learn(self, lesson: Lesson, tell: Callable[[int], None]) -> Learned:
        """Learns one layer; ``tell`` hears of every epoch that is done."""

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def generator(self, block: FeedForward) -> torch.Generator:
        """The same numbers for a layer, whether the layers before it were trained in this run or another."""
        return torch.Generator().manual_seed(1000 * self.seed + block.layer)


def fires(strength: torch.Tensor, share: float, *, is_relu: bool) -> torch.Tensor:
    """Which neurons count as firing, bool [tokens, d_ff].

    After a ReLU those that are not zero; otherwise, our reading, a token's strongest, ``share`` of them all.
    """
    if is_relu:
        return strength > 0
    count = max(1, round(share * strength.shape[1]))
    return strength >= strength.kthvalue(strength.shape[1] - count + 1, dim=1, keepdim=True).values


def recall(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the labelled that is among as many of the highest ``scores``, over all tokens at once."""
    count = int(labels.sum())
    if count in (0, labels.numel()):
        return 1.0
    limit = scores.flatten().kthvalue(labels.numel() - count + 1).values
    return float((labels & (scores >= limit)).sum()) / count
