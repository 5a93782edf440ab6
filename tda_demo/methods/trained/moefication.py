"""MoEfication (arXiv 2110.01786). Trained: a block's neurons in clusters, its experts; a router picks some per token.

The paper's: the rows of the first matrix, each divided by its norm, are clustered by balanced k-means into experts of
32 neurons. The router is Linear(d, E), which starts as the experts' centres, tanh, and Linear(E, E), which starts as
the identity, on ``x / ||x||``; its target is the sum of an expert's positive activations, over the largest; binary
cross-entropy, Adam at 0.01.

Ours: the first matrix of a GLU block is up; its activations count as ``|a_j| n_j``, n_j the norm of a column of down;
"the largest" is the token's; where d_ff is no multiple of 32, some experts have a neuron more than others; 20 epochs
where theirs are 30, on 17,000 tokens of the embedded model, and the epoch of the best recall is kept. An expert is
computed where its score reaches the layer's threshold, a quantile on the calibration passages, in place of the k best
of every token; router and all are kept in int8, with a scale a row. The compiled arm has the neurons of an expert side
by side, so that they are read in one piece: a second copy of the MLP's weights in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...model.feedforward import FeedForward
from ...support.lazy import torch
from ..settings import Range, setting
from .artefact import Artefact
from .method import StrengthPolicy, TrainedMethod, int8_values
from .recipe import Learned, Lesson, Recipe, fires, recall

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

    def policy(self, lm: LoadedModel, artefact: Artefact) -> StrengthPolicy:
        return _RouterPolicy(lm, artefact)


class _RouterPolicy(StrengthPolicy):
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
        router, mix = (int8_values(part[block.layer], x.device) for part in (self.router, self.mix))
        by_expert = scores(router, mix, torch.nn.functional.normalize(x.float(), dim=1))
        return by_expert[:, self.experts[block.layer].to(x.device)]

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


_BATCH = 1024


@dataclass(frozen=True)
class RouterRecipe(Recipe):
    """``share`` of the experts counts as wanted for the recall."""

    name: ClassVar[str] = "moefication"

    size: int = 32
    rounds: int = 8
    share: float = 0.3
    epochs: int = 20
    rate: float = 0.01
    seed: int = 0

    def learn(self, lesson: Lesson, tell: Callable[[int], None]) -> Learned:
        """``expert`` int64 [d_ff], every neuron's; ``router`` float32 [E, d] and ``mix`` float32 [E, E]."""
        generator = self.generator(lesson.block)
        rows = torch.nn.functional.normalize(lesson.block.up.weight.float(), dim=1)
        expert, centres = balanced_clusters(rows, self.size, self.rounds, generator)
        members = torch.nn.functional.one_hot(expert).float()
        target = lesson.strength @ members
        wanted = fires(target, self.share, is_relu=False)
        target /= target.amax(dim=1, keepdim=True).clamp_min(1e-30)
        learning = len(target) - lesson.held_out
        x, held_out = torch.nn.functional.normalize(lesson.x, dim=1).split([learning, lesson.held_out])
        router, mix = centres.clone().requires_grad_(), torch.eye(len(centres), device=x.device).requires_grad_()
        optimizer = torch.optim.Adam([router, mix], lr=self.rate)
        best, losses, recalls = (router, mix), [], []
        for epoch in range(self.epochs + 1):
            for batch in torch.randperm(len(x), generator=generator).split(_BATCH) if epoch else ():
                optimizer.zero_grad()
                _loss(scores(router, mix, x[batch]), target[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                logits = scores(router, mix, held_out)
                losses.append(float(_loss(logits, target[learning:])))
                recalls.append(recall(logits, wanted[learning:]))
            if recalls[-1] == max(recalls):
                best = router.detach().clone(), mix.detach().clone()
            tell(epoch)
        return Learned({"expert": expert, "router": best[0], "mix": best[1]}, tuple(losses), tuple(recalls))


def scores(router: torch.Tensor, mix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the router says to ``x`` [T, d], rows of length one: [T, E]."""
    return (x @ router.T).tanh() @ mix.T


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


def balanced_clusters(
    rows: torch.Tensor, size: int, rounds: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters of ``size`` of the unit ``rows`` [n, d], some one larger or smaller: int64 [n], centres [clusters, d].

    k-means whose every round assigns the rows at the least total distance that leaves all clusters equally large.
    """
    from scipy.optimize import linear_sum_assignment

    count = max(1, round(len(rows) / size))
    places = np.arange(len(rows)) * count // len(rows)  # the cluster of each place there is
    centres = rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]
    cluster = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for _ in range(rounds):
        likeness = (rows @ centres.T).cpu().numpy()
        _, chosen = linear_sum_assignment(likeness[:, places], maximize=True)
        before, cluster = cluster, torch.from_numpy(places[chosen]).to(rows.device)
        members = torch.nn.functional.one_hot(cluster, count).to(rows.dtype)
        centres = (members.T @ rows) / members.sum(dim=0)[:, None]
        if torch.equal(before, cluster):
            break
    return cluster, centres
