"""What the trained methods share: a strength per neuron from what was trained, and a threshold a layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...calibration.quantiles import limits
from ...calibration.sources import ANSWERS, Source
from ...model.feedforward import FeedForward
from ...support.lazy import torch
from ...support.progress import Report, silent
from ..base import Dial, Method
from ..settings import Range, setting
from ..token import TokenPolicy
from .artefact import Artefact
from .recipe import Recipe
from .training import trained_artefact

if TYPE_CHECKING:
    from ...kernels.formats import Rows
    from ...model.loading import LoadedModel


class StrengthPolicy(TokenPolicy):
    """A neuron is computed where its ``strength`` reaches its layer's of ``limits`` float64 [layers]."""

    limits: np.ndarray
    whole = True

    @abstractmethod
    def strength(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """float32 [T, d_ff] for the block's input ``x`` [T, d]; ``activations`` are not looked at."""

    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.strength(block, x, activations) >= self.limits[block.layer]


def int8_values(rows: Rows, device: torch.device) -> torch.Tensor:
    """The values of an int8 matrix, float32 [rows, columns]: what was trained is kept so, for the kernels."""
    codes, scales = (torch.from_numpy(part).to(device) for part in (rows.codes, rows.scales))
    return codes.float() * scales[:, None]


@dataclass(frozen=True)
class TrainedMethod(Method):
    """A method that trains once per model and settings, and is then set by ``keep`` alone."""

    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.1)

    keep: float = setting(0.5, "mean share of the neurons that is computed; 1 is exact", Range(0, 1))

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """How it is trained."""

    @abstractmethod
    def policy(self, lm: LoadedModel, artefact: Artefact) -> StrengthPolicy:
        """The policy that follows from what was trained; its limits are set in ``bind``."""

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> TokenPolicy:
        artefact = trained_artefact(lm, self.recipe, report)
        policy = self.policy(lm, artefact)
        policy.limits = limits(lm, f"{self.name}-{artefact.identity[:12]}", policy.strength, self.keep, source, report)
        return policy
