"""GRIFFIN (arXiv 2404.01365).

The paper's: training-free; the prompt runs dense; every layer scores its neurons by ``s_j = sqrt(sum_t (a_tj /
||a_t||_2)^2)`` over the prompt's tokens t and keeps the top ``int(keep * d_ff)`` of them, half of them, for the whole
generation. Its score is TDA's; what differs is that every layer and every prompt keeps equally many.

Ours: of neurons with equal scores the first are kept; ``prior``, ``first``, ``refresh`` and ``rest``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..calibration.cett import squared_strengths
from ..calibration.priors import strength_kind
from ..calibration.sources import Source
from ..support.progress import Report
from .base import Dial, EvidenceMethod
from .ranked import RankedPolicy
from .sequence import EvidencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class GRIFFIN(EvidenceMethod):
    """Keep an equal share of every layer's neurons, those that score highest over the prompt."""

    name: ClassVar[str] = "griffin"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)
    evidence_kind: ClassVar[str] = strength_kind(weighted=False)  # type: ignore[misc]

    keep: float = setting(0.5, "share of every layer's neurons that is kept; 1 is exact", Range(0, 1))

    def policy(self, lm: LoadedModel, report: Report, source: Source) -> EvidencePolicy:
        return RankedPolicy(lambda _block, activations: squared_strengths(activations), [self.keep] * len(lm.blocks))
