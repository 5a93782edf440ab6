"""DejaVu (arXiv 2310.17157). Trained: two small matrices a layer predict from a block's input which neurons fire.

The paper's: a predictor is Linear(d, r), Linear(r, d_ff), no bias, nothing between them, trained on ReLU models to tell
the neurons that fire, label ``a_j > 0``; binary cross-entropy in which what does not fire weighs ``w``, the share of
what does plus 0.005; AdamW with weight decay 0.01, batches of 1024.

Ours: training starts from the least-squares fit of rank r, in closed form, and takes 4 epochs, theirs 20; the epoch of
the best recall is kept. It sees 17,000 tokens of the embedded model where theirs sees 400,000, so a better predictor
can be had than the one that races here. For models without ReLU a neuron counts as firing where ``|a_j| n_j`` is among
the token's largest, n_j the norm of its column of down; a neuron is computed where its logit reaches the layer's
threshold, a quantile on the calibration passages, in place of the k highest of every token; the predictors are kept in
int8, with a scale a row, whatever the model's precision.
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
class DejaVu(TrainedMethod):
    """Trained. Small matrices predict which neurons fire; those are computed."""

    name: ClassVar[str] = "dejavu"

    rank: int = setting(96, "rank of the predictors; each is trained once, which takes minutes", Range(1, 1024))

    @property
    def recipe(self) -> PredictorRecipe:
        return PredictorRecipe(rank=self.rank)

    def policy(self, lm: LoadedModel, artefact: Artefact) -> StrengthPolicy:
        return _PredictorPolicy(lm, artefact)


class _PredictorPolicy(StrengthPolicy):
    """``limits`` float64 [layers] of the predictors' logits."""

    def __init__(self, lm: LoadedModel, artefact: Artefact) -> None:
        from ...kernels.formats import INT8

        self.note = artefact.about.note
        self.first = [INT8.encode(layer["first"]) for layer in artefact.layers]
        self.second = [INT8.encode(layer["second"]) for layer in artefact.layers]
        self.extra_bytes = sum(part.nbytes for part in (*self.first, *self.second))

    def strength(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The logits, float32 [T, d_ff]."""
        first, second = (int8_values(part[block.layer], x.device) for part in (self.first, self.second))
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


_BATCH = 1024
_JUDGED = 1024  # tokens, at most
_RIDGE = 1e-3  # of the mean square of an input
_UNSURE = 4.0  # slope of a logit at a probability of one half


@dataclass(frozen=True)
class PredictorRecipe(Recipe):
    """``share`` of the neurons counts as firing where none is zero."""

    name: ClassVar[str] = "dejavu"

    rank: int = 96
    share: float = 0.3
    epochs: int = 4
    rate: float = 1e-3
    seed: int = 0

    def learn(self, lesson: Lesson, tell: Callable[[int], None]) -> Learned:
        """``first`` float32 [r, d] and ``second`` float32 [d_ff, r]."""
        labels = fires(lesson.strength, self.share, is_relu=lesson.is_relu)
        unit = float(lesson.x.square().mean().sqrt().clamp_min(1e-12))
        x, held_out = (lesson.x / unit).split([len(labels) - lesson.held_out, lesson.held_out])
        y, truth = labels.split([len(x), len(held_out)])
        every = -(-len(held_out) // _JUDGED)
        held_out, truth = held_out[::every], truth[::every]
        weight = float(y.float().mean()) + 0.005
        first, second = least_squares(x, y, self.rank)
        optimizer = torch.optim.AdamW([first, second], lr=self.rate, weight_decay=0.01)
        slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, self.epochs * -(-len(x) // _BATCH))
        generator = self.generator(lesson.block)
        best, losses, recalls = (first.clone(), second.clone()), [], []
        for epoch in range(self.epochs + 1):
            for batch in torch.randperm(len(x), generator=generator).split(_BATCH) if epoch else ():
                first.grad, second.grad = _gradients(first, second, x[batch], y[batch], weight)
                optimizer.step()
                slower.step()
            logits = held_out @ first.T @ second.T
            losses.append(_loss(logits, truth, weight))
            recalls.append(recall(logits, truth))
            if recalls[-1] == max(recalls):
                best = first.clone(), second.clone()
            tell(epoch)
        return Learned({"first": best[0] / unit, "second": best[1]}, tuple(losses), tuple(recalls))


def least_squares(x: torch.Tensor, labels: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices [r, d] and [d_ff, r] whose product comes closest to logits that say ``labels`` [tokens, d_ff].

    Least squares of rank r: those of full rank, projected on what they say most of, in the metric of ``x`` [tokens, d].
    """
    ridge = _RIDGE * x.square().sum(dim=0).mean().clamp_min(1e-12)
    if len(x) < x.shape[1]:
        return _of_few_tokens(x, labels, rank, ridge)
    gram = x.T @ x
    gram += ridge * torch.eye(len(gram), device=x.device)
    root = torch.linalg.cholesky(gram)
    wanted = _UNSURE * (x.T @ labels.float() - x.sum(dim=0)[:, None] / 2)
    whitened = torch.linalg.solve_triangular(root, wanted, upper=False)
    directions = torch.linalg.eigh(whitened @ whitened.T).eigenvectors[:, -rank:]  # the last are the largest
    first = torch.linalg.solve_triangular(root.T, directions, upper=True).T.contiguous()
    return first, (whitened.T @ directions).contiguous()


def _of_few_tokens(
    x: torch.Tensor, labels: torch.Tensor, rank: int, ridge: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``least_squares`` by what the tokens span, in matrices [tokens, tokens]: the same at a fraction of the work."""
    spread, sides = torch.linalg.eigh(x @ x.T)
    spread = spread.clamp_min(1e-6 * spread[-1].clamp_min(1e-12))  # what rounding leaves of directions x does not have
    whitened = (sides * (spread / (spread + ridge)).sqrt()).T @ (_UNSURE * (labels.float() - 0.5))
    directions = torch.linalg.eigh(whitened @ whitened.T).eigenvectors[:, -rank:]
    first = (x.T @ (sides / (spread * (spread + ridge)).sqrt()) @ directions).T.contiguous()
    return first, (whitened.T @ directions).contiguous()


def _gradients(
    first: torch.Tensor, second: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean loss, by hand: half of the time that automatic differentiation takes."""
    hidden = x @ first.T
    predicted = (hidden @ second.T).sigmoid()
    error = torch.where(labels, predicted - 1, predicted * weight) / labels.numel()
    return (error @ second).T @ x, error.T @ hidden


def _loss(logits: torch.Tensor, labels: torch.Tensor, weight: float) -> float:
    """Mean binary cross-entropy in nats."""
    weights = torch.where(labels, 1.0, weight)
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), weights))
