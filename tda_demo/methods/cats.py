"""CATS (arXiv 2404.08763).

The paper's: per token, the gate is computed in full, ``g = act(x Wg^T)``; neurons whose ``|g_j|`` does not exceed the
layer's threshold are left out, the threshold being a percentile of ``|g|`` on calibration text. A step reads all of
gate, and of up and down what fires.

Ours: the percentiles are of the project's own calibration passages. A plain block has no gate: its first matrix is
computed in full and thresholded, so that only down is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..calibration.quantiles import limits
from ..calibration.sources import ANSWERS, Source
from ..model.configuration import activation_function
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .settings import Range, setting
from .token import TokenPolicy

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class CATS(Method):
    """Compute the gate in full, and the rest of a neuron where its activated gate is large."""

    name: ClassVar[str] = "cats"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)
    leaves_out: ClassVar[str] = "of the MLP neurons' up and down"

    keep: float = setting(0.5, "mean share of the neurons whose gate exceeds the threshold; 1 is exact", Range(0, 1))

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> TokenPolicy:
        policy = _GatePolicy(lm)
        policy.limits = limits(lm, self.name, policy.strength, self.keep, source, report)
        return policy


class _GatePolicy(TokenPolicy):
    """``limits`` float64 [layers] of ``|act(g_j)|``."""

    def __init__(self, lm: LoadedModel) -> None:
        is_glu = all(block.is_glu for block in lm.blocks)
        self.full = frozenset({"gate"} if is_glu else {"up"})
        self.is_glu = is_glu
        self.activation = activation_function(lm.model)
        self.limits = np.zeros(len(lm.blocks))

    def strength(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """``|act(g_j)|``, float32 [T, d_ff]."""
        return self.activation(block.activation_input(x)).abs().float()

    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.strength(block, x, activations) > self.limits[block.layer]

    @property
    def kernel(self) -> Any:
        from ..kernels.cpu.token.thresholds import GateThreshold

        return GateThreshold(self.limits.astype(np.float32)) if self.is_glu else None
