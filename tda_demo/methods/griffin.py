"""GRIFFIN (arXiv 2404.01365).

The paper's: training-free; the prompt runs dense; every layer scores its neurons by ``s_j = sqrt(sum_t (a_tj /
||a_t||_2)^2)`` over the prompt's tokens t and keeps the top ``int(keep * d_ff)`` of them, half of them, for the whole
generation. Its score is TDA's; what differs is that every layer and every prompt keeps equally many.

Ours: of neurons with equal scores the first are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..calibration.cett import score, strengths
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .policy import RankedPolicy, SequencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class GRIFFIN(Method):
    """Keep an equal share of every layer's neurons, those that score highest over the prompt."""

    name: ClassVar[str] = "griffin"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)

    keep: float = setting(0.5, "share of every layer's neurons that is kept; 1 is exact", Range(0, 1))

    def bind(self, lm: LoadedModel, report: Report = silent) -> SequencePolicy:
        return RankedPolicy(_score, [self.keep] * len(lm.blocks))


def _score(_block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
    # The mean over tokens in place of the sum: one factor for all neurons, so the same order.
    return score(strengths(activations))
