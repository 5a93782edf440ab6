"""CoreInfer (arXiv 2410.18311).

The paper's: training-free; the prompt runs dense; every token of it votes for the top 20 % of a layer's neurons; the
40 % with the most votes are kept for the whole generation; the first 5 and last layers stay dense.

Our reading, where we do not have the paper's word: a token ranks activations by magnitude, and its top is a share of
all neurons; one that does not fire (a ReLU's zero) gets no vote; "last" is one layer; neurons with fewer votes fill up
the share that is kept; of neurons with equal votes, and there are many in a short prompt, the first are kept.

Ours: ``prior``, ``first``, ``refresh`` and ``rest``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

from ..calibration.sources import Source
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from ..support.progress import Report
from .base import Dial, EvidenceMethod
from .ranked import RankedPolicy
from .sequence import EvidencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class CoreInfer(EvidenceMethod):
    """Keep the neurons that most tokens of the prompt count among their strongest.

    A model with no more layers than are exempt stays dense.
    """

    name: ClassVar[str] = "coreinfer"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)

    keep: float = setting(0.4, "share of a layer's neurons that is kept; 1 is exact", Range(0, 1))
    token_share: float = setting(0.2, "share of a layer's neurons that one token votes for", Range(0, 1))
    exempt_first: int = setting(5, "how many layers at the start are kept dense", Range(0, inf))
    exempt_last: int = setting(1, "how many layers at the end are kept dense", Range(0, inf))

    @property
    def evidence_kind(self) -> str:
        return f"votes-{self.token_share:g}"

    def policy(self, lm: LoadedModel, report: Report, source: Source) -> EvidencePolicy:
        layers = len(lm.blocks)
        sparse = range(self.exempt_first, layers - self.exempt_last)
        return RankedPolicy(self._votes, [self.keep if layer in sparse else 1.0 for layer in range(layers)])

    def _votes(self, _block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """How many tokens vote for each neuron: [T, d_ff] -> float32 [d_ff]."""
        magnitude = activations.abs()
        voted = _largest(magnitude, int(self.token_share * activations.shape[1]))
        return (voted & (magnitude > 0)).sum(dim=0).float()


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` largest of each row of ``values`` as a mask of the same shape; of equal ones the first.

    A stable sort says the same and takes about three times as long, on a CPU nearly as long as reading the prompt.
    """
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    smallest = values.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above, level = values > smallest, values == smallest
    room = count - above.sum(dim=1, keepdim=True)
    return above | (level & (level.cumsum(dim=1) <= room))
