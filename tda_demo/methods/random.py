"""Chance, a control: what leaving out as many neurons costs when they are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..calibration.sources import Source
from ..support.lazy import torch
from ..support.progress import Report
from .base import Dial, SequenceMethod
from .ranked import FixedPolicy
from .sequence import SequencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Random(SequenceMethod):
    """Keep an equal share of every layer's neurons, drawn by lot: a control.

    One seed draws the same neurons for every prompt and on every device.
    """

    name: ClassVar[str] = "random"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)
    is_control: ClassVar[bool] = True

    keep: float = setting(0.5, "share of every layer's neurons that is kept; 1 is exact", Range(0, 1))
    seed: int = setting(0, "seed of the draw; the same draws the same neurons", Range(0, 2**32 - 1))

    def policy(self, lm: LoadedModel, report: Report, source: Source) -> SequencePolicy:
        generator = torch.Generator().manual_seed(self.seed)
        scores = [torch.rand(block.d_ff, generator=generator) for block in lm.blocks]
        return FixedPolicy(scores, [self.keep] * len(lm.blocks))
