"""TDA, threshold-based dynamic activation (arXiv 2408.11393).

The paper's: training-free; the prompt runs dense; each layer scores its neurons over the whole prompt by an L2 norm of
relative activations, keeps those above an offline per-layer threshold and stores the mask; generation uses the stored
mask, which is not updated.

Our reading, where the paper does not say: the score's normalisation (``cett.score``); the offline threshold is found
for a CETT target, 0.2 in the paper's preset, the value its authors use in arXiv 2405.09274; ``online``, ``scale``,
``exempt`` and ``weighted``.

Ours: ``shape`` by ``sensitivity``, which spreads over the layers the neurons that one CETT would keep, by what each
layer costs (``calibration.sensitivity``); ``prior``, ``first``, ``refresh`` and ``rest``, as all sequence-level methods
have them. ``shape=uniform`` with these at 0 and ``skip`` is the paper's method; the defaults are those of the preset
that a rule has found (``methods.presets``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from ..calibration.cett import squared_strengths, strengths, tail_curve, thresholds
from ..calibration.priors import strength_kind
from ..calibration.sensitivity import allocate, sensitivity, share_at
from ..calibration.sources import ANSWERS, Source
from ..calibration.thresholds import threshold_table
from ..model.feedforward import FeedForward
from ..support.errors import UserError
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, EvidenceMethod
from .policy import Policy
from .sequence import Choice, EvidencePolicy
from .settings import Range, setting, told_in

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_SCALED_CETT = 0.25  # what factors are given for


@dataclass(frozen=True)
class TDA(EvidenceMethod):
    """Keep the neurons whose score over the prompt reaches the layer's threshold."""

    name: ClassVar[str] = "tda"
    dial: ClassVar[Dial] = Dial("cett", dense=0.0, sparsest=0.7)

    cett: float = setting(0.7, "relative output error the thresholds are calibrated to; 0 is exact", Range(0, 0.7))
    shape: Literal["sensitivity", "uniform"] = setting(
        "sensitivity", "one CETT for all layers, or as many neurons spread by what each layer costs"
    )
    scale: tuple[float, ...] = setting((), "a factor on each layer's threshold; 0 keeps a layer dense", Range(0, inf))
    online: bool = setting(
        False, "take the thresholds from the prompt itself, not from calibration; uniform shape only"
    )
    exempt: tuple[int, ...] = setting((), "layers kept dense", Range(0, inf))
    weighted: bool = setting(False, "multiply the score by the norm of the neuron's output column")
    prior: float = field(default=64.0, metadata=told_in(EvidenceMethod, "prior"), kw_only=True)
    rest: Literal["skip", "4bit"] = field(default="4bit", metadata=told_in(EvidenceMethod, "rest"), kw_only=True)

    @property
    def evidence_kind(self) -> str:
        return strength_kind(self.weighted)

    @property
    def score_name(self) -> str:
        """Tells scores from others: those of a prompt depend on these settings alone."""
        return f"{self.evidence_kind}-{self.prior:g}"

    def policy(self, lm: LoadedModel, report: Report, source: Source) -> EvidencePolicy:
        factors = self._factors(len(lm.blocks))
        if self.cett == 0:
            return _ThresholdPolicy(np.zeros_like(factors), self.weighted)
        if self.online:
            return _OnlineThresholdPolicy(self.cett, factors, self.weighted)
        table = threshold_table(lm, weighted=self.weighted, source=source, report=report)
        if self.shape == "uniform":
            return _ThresholdPolicy(table.at(self.cett) * factors, self.weighted)
        measured = sensitivity(lm, source, weighted=self.weighted, report=report)
        targets = allocate(measured, share_at(measured, self.cett))
        return _ThresholdPolicy(table.at_each(targets) * factors, self.weighted)

    def without_calibration(self) -> Self:
        return replace(self, online=True, shape="uniform", prior=0.0)

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


class _ThresholdPolicy(EvidencePolicy):
    """Keeps the neurons whose score reaches the layer's limit. ``limits`` is float64 [layers]."""

    def __init__(self, limits: np.ndarray, weighted: bool) -> None:
        self.limits = limits
        self.weighted = weighted

    def evidence(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return squared_strengths(activations, block.output_norms if self.weighted else None)

    def choice(self, block: FeedForward, activations: torch.Tensor, evidence: torch.Tensor) -> Choice:
        limit = self.limits[block.layer]
        return lambda mean: mean.sqrt() >= limit

    def count_fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        strength = self._strengths(block, activations, computed)
        return ((strength >= self.limits[block.layer]) & (strength > 0)).sum(dim=1)

    def _strengths(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        if not self.weighted:
            return strengths(activations)
        return strengths(activations, block.output_norms if computed is None else block.output_norms[computed])


def limits_of(policy: Policy) -> np.ndarray:
    """The scores that a policy of TDA asks of every layer's neurons, float64 [layers].

    Raises:
        TypeError: it is not one of TDA's.
    """
    if not isinstance(policy, _ThresholdPolicy):
        raise TypeError(f"{type(policy).__name__} has no thresholds on scores")
    return policy.limits


class _OnlineThresholdPolicy(_ThresholdPolicy):
    """Finds each layer's limit in the prompt itself, for the CETT target, before it selects."""

    def __init__(self, cett: float, factors: np.ndarray, weighted: bool) -> None:
        super().__init__(np.zeros_like(factors), weighted)
        self.cett = cett
        self.factors = factors

    def choice(self, block: FeedForward, activations: torch.Tensor, evidence: torch.Tensor) -> Choice:
        curve = tail_curve(block, activations, evidence.sqrt())
        self.limits[block.layer] = thresholds([curve], np.array([self.cett]))[0] * self.factors[block.layer]
        return super().choice(block, activations, evidence)


def with_cett_by_layer(lm: LoadedModel, cett: np.ndarray, source: Source = ANSWERS, report: Report = silent) -> TDA:
    """TDA with the thresholds of ``cett`` float64 [layers]: one CETT, and a factor on each layer's threshold."""
    table = threshold_table(lm, weighted=False, source=source, report=report)
    scale = table.at_each(cett) / table.at(_SCALED_CETT)
    return TDA(_SCALED_CETT, shape="uniform", scale=tuple(scale.tolist()))
