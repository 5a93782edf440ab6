"""TDA, threshold-based dynamic activation (arXiv 2408.11393).

The paper's: training-free; the prompt runs dense; each layer scores its neurons over the whole prompt by an L2 norm of
relative activations, keeps those above an offline per-layer threshold and stores the mask; generation uses the stored
mask, which is not updated.

Our reading, where the paper does not say: the score's normalisation (``cett.score``); the offline threshold is found
for a CETT target, 0.2 by default, the value its authors use in arXiv 2405.09274; ``online``, ``scale``, ``exempt`` and
``weighted``. ``refresh`` is ours (``methods.refresh``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..calibration.cett import score, strengths, tail_curve, thresholds
from ..calibration.thresholds import threshold_table
from ..model.feedforward import FeedForward
from ..support.errors import UserError
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .policy import SequencePolicy
from .refresh import History, RefreshingPolicy, RenewablePolicy
from .settings import Range, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class TDA(Method):
    """Keep the neurons whose score over the prompt reaches the layer's threshold."""

    name: ClassVar[str] = "tda"
    dial: ClassVar[Dial] = Dial("cett", dense=0.0, sparsest=0.6)

    cett: float = setting(0.2, "relative output error the thresholds are calibrated to; 0 is exact", Range(0, 0.6))
    scale: tuple[float, ...] = setting((), "a factor on each layer's threshold; 0 keeps a layer dense", Range(0, inf))
    online: bool = setting(False, "take the thresholds from the prompt itself, not from the calibration passages")
    exempt: tuple[int, ...] = setting((), "layers kept dense", Range(0, inf))
    weighted: bool = setting(False, "multiply the score by the norm of the neuron's output column")
    refresh: int = setting(
        0, "choose the neurons anew every so many tokens, by a dense step each; 0 never", Range(0, inf)
    )

    def bind(self, lm: LoadedModel, report: Report = silent) -> SequencePolicy:
        policy = self._threshold_policy(lm, report)
        return RefreshingPolicy(policy, self.refresh) if self.refresh else policy

    def _threshold_policy(self, lm: LoadedModel, report: Report) -> _ThresholdPolicy:
        factors = self._factors(len(lm.blocks))
        if self.cett == 0:
            return _ThresholdPolicy(np.zeros_like(factors), self.weighted)
        if self.online:
            return _OnlineThresholdPolicy(self.cett, factors, self.weighted)
        table = threshold_table(lm, weighted=self.weighted, report=report)
        return _ThresholdPolicy(table.at(self.cett) * factors, self.weighted)

    def _factors(self, layers: int) -> np.ndarray:
        """One factor per layer, float64 [layers], 0 where the layer is exempt.

        Raises:
            UserError: a setting names layers the model does not have.
        """
        if self.scale and len(self.scale) != layers:
            raise UserError(f"scale has {len(self.scale)} factors; this model has {layers} layers.")
        if self.exempt and max(self.exempt) >= layers:
            raise UserError(f"exempt names layer {max(self.exempt)}; this model has layers 0 to {layers - 1}.")
        factors = np.array(self.scale or (1.0,) * layers, dtype=np.float64)
        factors[list(self.exempt)] = 0
        return factors


class _ThresholdPolicy(RenewablePolicy):
    """Keeps the neurons whose score reaches the layer's limit. ``limits`` is float64 [layers]."""

    def __init__(self, limits: np.ndarray, weighted: bool) -> None:
        self.limits = limits
        self.weighted = weighted

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return score(self._strengths(block, activations)) >= self.limits[block.layer]

    def count_fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        strength = self._strengths(block, activations, computed)
        return ((strength >= self.limits[block.layer]) & (strength > 0)).sum(dim=1)

    def history(self, block: FeedForward, activations: torch.Tensor) -> History:
        norms = block.output_norms if self.weighted else None
        return History.of(float(self.limits[block.layer]), norms, activations)

    def _strengths(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        if not self.weighted:
            return strengths(activations)
        return strengths(activations, block.output_norms if computed is None else block.output_norms[computed])


class _OnlineThresholdPolicy(_ThresholdPolicy):
    """Finds each layer's limit in the prompt itself, for the CETT target, before it selects."""

    def __init__(self, cett: float, factors: np.ndarray, weighted: bool) -> None:
        super().__init__(np.zeros_like(factors), weighted)
        self.cett = cett
        self.factors = factors

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        curve = tail_curve(block, activations, score(self._strengths(block, activations)))
        self.limits[block.layer] = thresholds([curve], np.array([self.cett]))[0] * self.factors[block.layer]
        return super().select(block, activations)
