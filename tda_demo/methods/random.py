"""Chance, a control: what leaving out as many neurons costs when they are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..model.feedforward import FeedForward
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .policy import RankedPolicy, SequencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Random(Method):
    """Keep an equal share of every layer's neurons, drawn by lot: a control.

    One seed draws the same neurons for every prompt and on every device.
    """

    name: ClassVar[str] = "random"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)
    is_control: ClassVar[bool] = True

    keep: float = setting(0.5, "share of every layer's neurons that is kept; 1 is exact", Range(0, 1))
    seed: int = setting(0, "seed of the draw; the same draws the same neurons", Range(0, 2**32 - 1))

    def bind(self, lm: LoadedModel, report: Report = silent) -> SequencePolicy:
        generator = torch.Generator().manual_seed(self.seed)
        scores = [torch.rand(block.d_ff, generator=generator) for block in lm.blocks]

        def score(block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
            return scores[block.layer].to(activations.device)

        return RankedPolicy(score, [self.keep] * len(lm.blocks))
