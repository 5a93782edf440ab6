"""MoEfication (arXiv 2110.01786). Trained: a block's neurons in clusters, its experts; a router picks some per token.

The paper's: experts and router, and how they come about (``trained.experts``).

Ours: an expert is computed where its score reaches the layer's threshold, a quantile on the calibration passages, in
place of the k best of every token; router and all are kept in int8, with a scale a row. The compiled arm has the
neurons of an expert side by side, so that they are read in one piece: a second copy of the MLP's weights in memory.
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
from .experts import RouterRecipe, scores
from .method import StrengthPolicy, TrainedMethod

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


@dataclass(frozen=True)
class MoEfication(TrainedMethod):
    """Trained. A router picks clusters of neurons; those are computed."""

    name: ClassVar[str] = "moefication"

    size: int = setting(32, "neurons of an expert; each size is trained once, which takes minutes", Range(1, 4096))

    @property
    def recipe(self) -> RouterRecipe:
        return RouterRecipe(size=self.size)

    def rule(self, lm: LoadedModel, artefact: Artefact) -> StrengthPolicy:
        return _Routed(lm, artefact)


class _Routed(StrengthPolicy):
    """``limits`` float64 [layers] of the router's scores."""

    def __init__(self, lm: LoadedModel, artefact: Artefact) -> None:
        from ...kernels.formats import INT8

        self.note = artefact.about.note
        self.experts = [layer["expert"] for layer in artefact.layers]
        self.order = tuple(expert.argsort(stable=True) for expert in self.experts)
        self.router = [INT8.encode(layer["router"]) for layer in artefact.layers]
        self.mix = [INT8.encode(layer["mix"]) for layer in artefact.layers]
        self.extra_bytes = sum(part.nbytes for part in (*self.router, *self.mix))

    def strength(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The score of every neuron's expert, float32 [T, d_ff]."""
        router, mix = (decoded(part[block.layer], x.device) for part in (self.router, self.mix))
        said = scores(router, mix, torch.nn.functional.normalize(x.float(), dim=1))
        return said[:, self.experts[block.layer].to(x.device)]

    @property
    def kernel(self) -> Any:
        from ...kernels.cpu.token.trained import Experts
        from ...kernels.formats import stack

        router, mix = stack(self.router), stack(self.mix)
        sizes = np.concatenate([np.bincount(expert.numpy()) for expert in self.experts])
        return Experts(
            bounds=np.concatenate([[0], np.cumsum(sizes)]),
            router=router.codes,
            router_scale=router.scales,
            mix=mix.codes,
            mix_scale=mix.scales,
            limits=self.limits.astype(np.float32),
        )
