"""TT, threshold truncation: the baseline of TDA's paper (arXiv 2408.11393), by the CETT rule of arXiv 2402.03804.

Per token, neuron j is left out where ``|a_j| n_j`` does not exceed the layer's threshold, n_j the norm of its column of
down; the threshold is the largest whose mean CETT on calibration tokens is at most the target. That needs gate and up
first, so a step saves some of down only: an upper bound on quality, not a way to be fast.

Ours: the calibration tokens are of the project's own passages, and the largest threshold is found between quantiles of
``|a_j| n_j``, where the CETT is taken as linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..calibration.cett import truncation_errors
from ..calibration.quantiles import kept_table, observed_tokens, quantiles
from ..calibration.sources import ANSWERS, Source
from ..calibration.thresholds import TARGETS
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .settings import Range, setting
from .token import TokenPolicy

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class TT(Method):
    """Compute every activation, and leave out of the down projection those that add little."""

    name: ClassVar[str] = "tt"
    dial: ClassVar[Dial] = Dial("cett", dense=0.0, sparsest=0.6)
    leaves_out: ClassVar[str] = "of the MLP neurons' down"

    cett: float = setting(0.2, "relative output error the thresholds are calibrated to; 0 is exact", Range(0, 0.6))

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> TokenPolicy:
        if self.cett == 0:
            return _TruncationPolicy(lm, np.full(len(lm.blocks), -np.inf))
        table = kept_table(lm, self.name, len(TARGETS), source, lambda: _thresholds(lm, source, report))
        return _TruncationPolicy(lm, np.array([np.interp(self.cett, TARGETS, layer) for layer in table]))


def _thresholds(lm: LoadedModel, source: Source, report: Report) -> np.ndarray:
    """Float64 [layers, targets]."""
    rows = []
    for block, x, activations in observed_tokens(lm, source, report):
        strength = _strength(block, x, activations)
        limits = quantiles(strength)[::2]
        errors = np.maximum.accumulate(truncation_errors(block, activations, strength, limits))
        rows.append(np.interp(TARGETS, errors, limits))
    return np.array(rows)


def _strength(block: FeedForward, _x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    return activations.float().abs() * block.output_norms


class _TruncationPolicy(TokenPolicy):
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
