"""TEAL (arXiv 2408.14690).

The paper's: training-free; per token, every matrix of a layer (q, k, v, o, gate, up, down) leaves out the input
channels whose magnitude does not exceed the matrix's threshold, which comes from a histogram of that input on
calibration text; a block's sparsity is shared out among its matrices greedily, by the error of the block's output.

Our reading: a step of that search raises one matrix's sparsity by a tenth, of all matrices that with the least error
added per weight left out (``channel_shares``); every layer gets the same sparsity, and between two steps of the search
it is linear; fused matrices (phi3, gpt_neox) have one threshold. The prompt runs dense, as under every method here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...support.progress import Report, silent
from ..base import Dial, Method
from ..settings import Range, setting
from .channels import ChannelPolicy, matrices
from .shares import MOST, channel_table

if TYPE_CHECKING:
    from ...model.loading import LoadedModel
    from ..token import TokenPolicy


@dataclass(frozen=True)
class TEAL(Method):
    """Leave out of every matrix, attention's too, the input channels that are small for the token."""

    name: ClassVar[str] = "teal"
    dial: ClassVar[Dial] = Dial("sparsity", dense=0.0, sparsest=MOST)
    leaves_out: ClassVar[str] = "of the MLP weights"

    sparsity: float = setting(
        0.4, "mean share of a layer's weights, attention's included, that is left out; 0 is exact", Range(0, MOST)
    )

    def bind(self, lm: LoadedModel, report: Report = silent) -> TokenPolicy:
        if self.sparsity == 0:
            return ChannelPolicy(lm, [np.full(len(matrices(block)), -np.inf) for block in lm.blocks])
        return ChannelPolicy(lm, channel_table(lm, report).limits(self.sparsity))
