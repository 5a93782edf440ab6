"""TT, threshold truncation: the baseline of TDA's paper (arXiv 2408.11393), by the CETT rule of arXiv 2402.03804.

Per token, neuron j is left out where ``|a_j| n_j`` does not exceed the layer's threshold, n_j the norm of its column of
down. That needs gate and up first, so a step saves some of down only: an upper bound on quality, not a way to be fast.

Our reading: the threshold is the quantile of ``|a_j| n_j`` on the calibration passages that the share kept asks for,
instead of the largest one within a CETT, so that its dial reads like the other token-level methods'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..feedforward import FeedForward
from ..later import torch
from ..progress import Report, silent
from .base import Dial, Method
from .quantiles import limits
from .settings import Range, setting
from .token import TokenRule

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True)
class TT(Method):
    """Compute every activation, and leave out of the down projection those that add little."""

    name: ClassVar[str] = "tt"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)

    keep: float = setting(0.5, "mean share of the neurons that exceed the threshold; 1 is exact", Range(0, 1))

    def bind(self, lm: LoadedModel, report: Report = silent) -> TokenRule:
        return _Truncated(lm, limits(lm, self.name, _strength, self.keep, report))


def _strength(block: FeedForward, _x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    return activations.float().abs() * block.output_norms


class _Truncated(TokenRule):
    """``limits`` float64 [layers] of ``|a_j| n_j``."""

    full = frozenset({"gate", "up"})

    def __init__(self, lm: LoadedModel, limits: np.ndarray) -> None:
        self.limits = limits
        self.norms = [block.output_norms for block in lm.blocks]
        self.extra_bytes = sum(norms.nbytes for norms in self.norms)

    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return _strength(block, x, activations) > self.limits[block.layer]

    @property
    def kernel(self) -> Any:
        from ..kernels.cpu.token.thresholds import Truncation

        return Truncation(np.concatenate([norms.numpy() for norms in self.norms]), self.limits.astype(np.float32))
