"""The prior alone, a control: a fixed set chosen offline, without a look at the prompt.

The score of a neuron is the mean of its squared relative activations over the calibration texts, the model's own
answers to other prompts where it races: what TDA's and GRIFFIN's score is for one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..calibration.priors import strength_prior
from ..calibration.sources import Source
from ..support.progress import Report
from .base import Dial, SequenceMethod
from .ranked import FixedPolicy
from .sequence import SequencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Prior(SequenceMethod):
    """Keep an equal share of every layer's neurons, those that fire most in answers to other prompts: a control."""

    name: ClassVar[str] = "prior"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)
    is_control: ClassVar[bool] = True

    keep: float = setting(0.5, "share of every layer's neurons that is kept; 1 is exact", Range(0, 1))

    def policy(self, lm: LoadedModel, report: Report, source: Source) -> SequencePolicy:
        return FixedPolicy(strength_prior(lm, source, report=report), [self.keep] * len(lm.blocks))
