"""DejaVu (arXiv 2310.17157). Trained: two small matrices a layer predict from a block's input which neurons fire.

The paper's: the predictors and how they are trained (``trained.predictor``), on ReLU models, label ``a_j > 0``.

Ours: for other models a neuron counts as firing where ``|a_j| n_j`` is among the token's largest, n_j the norm of its
column of down; a neuron is computed where its logit reaches the layer's threshold, a quantile on the calibration
passages, in place of the k highest of every token; the predictors are kept in int8, with a scale a row, whatever the
model's precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...model.feedforward import FeedForward
from ...support.lazy import torch
from ..parts import decoded
from ..settings import Range, setting
from .artefact import Artefact
from .method import StrengthPolicy, TrainedMethod
from .predictor import PredictorRecipe

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


@dataclass(frozen=True)
class DejaVu(TrainedMethod):
    """Trained. Small matrices predict which neurons fire; those are computed."""

    name: ClassVar[str] = "dejavu"

    rank: int = setting(96, "rank of the predictors; each is trained once, which takes minutes", Range(1, 1024))

    @property
    def recipe(self) -> PredictorRecipe:
        return PredictorRecipe(rank=self.rank)

    def rule(self, lm: LoadedModel, artefact: Artefact) -> StrengthPolicy:
        return _Predicted(lm, artefact)


class _Predicted(StrengthPolicy):
    """``limits`` float64 [layers] of the predictors' logits."""

    def __init__(self, lm: LoadedModel, artefact: Artefact) -> None:
        from ...kernels.formats import INT8

        self.note = artefact.about.note
        self.first = [INT8.encode(layer["first"]) for layer in artefact.layers]
        self.second = [INT8.encode(layer["second"]) for layer in artefact.layers]
        self.extra_bytes = sum(part.nbytes for part in (*self.first, *self.second))

    def strength(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The logits, float32 [T, d_ff]."""
        first, second = (decoded(part[block.layer], x.device) for part in (self.first, self.second))
        return x.float() @ first.T @ second.T

    @property
    def kernel(self) -> Any:
        from ...kernels.cpu.token.trained import Predictors
        from ...kernels.formats import stack

        first = stack(self.first)
        return Predictors(
            first=first.codes,
            first_scale=first.scales,
            second=np.concatenate([part.codes for part in self.second]),
            second_scale=np.concatenate([part.scales for part in self.second]),
            limits=self.limits.astype(np.float32),
        )
