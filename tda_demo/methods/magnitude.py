"""Weight magnitude, a control: what can be left out without looking at any text.

The score of neuron j is ``||Wg[j]|| ||Wu[j]|| ||Wd[:, j]||`` (plain blocks: ``||W1[j]|| ||W2[:, j]||``), all norms
Euclidean, biases left aside: for an input of length one that bounds what the neuron adds to a block's output, with an
activation function that does not enlarge its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..calibration.sources import Source
from ..support.progress import Report
from .base import Dial, SequenceMethod
from .ranked import FixedPolicy
from .sequence import SequencePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Magnitude(SequenceMethod):
    """Keep an equal share of every layer's neurons, those with the largest weights: a control blind to the prompt."""

    name: ClassVar[str] = "magnitude"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)
    is_control: ClassVar[bool] = True

    keep: float = setting(0.5, "share of every layer's neurons that is kept; 1 is exact", Range(0, 1))

    def policy(self, lm: LoadedModel, report: Report, source: Source) -> SequencePolicy:
        sizes = [block.input_norms * block.output_norms for block in lm.blocks]
        return FixedPolicy(sizes, [self.keep] * len(lm.blocks))
