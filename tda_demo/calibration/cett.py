"""CETT, the cumulative error of tail truncation, and the neuron score it is a function of.

CETT (arXiv 2402.03804): with D the dropped neurons, ``CETT = || sum_{j in D} a_j Wd[:, j] || / || y ||``. There D is
chosen per token; here, for a sequence-level method, one D serves every token of a sequence.

The score of neuron j over a sequence of T tokens is our reading of arXiv 2408.11393, which names an L2 norm of relative
activations and not its normalisation: ``R_j = sqrt(mean_t (|a_tj| / ||a_t||_2)^2)``, optionally times the norm of the
neuron's output column. The mean over t, not the sum, makes one offline threshold fit prompts of every length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.feedforward import FeedForward
from ..support.lazy import torch

_GROUP = 64  # neurons whose cross terms are taken at once: the exact curve for the arithmetic of two down projections
_DECODED = 8 * _GROUP  # neurons decoded at once, whose floats stay in the processor's cache


def strengths(activations: torch.Tensor, output_norms: torch.Tensor | None = None) -> torch.Tensor:
    """Relative activations ``|a_tj| / ||a_t||_2``, times ``output_norms`` [neurons] if given: float32 [T, neurons].

    A token whose activations are all zero (ReLU models have them) has strength zero everywhere.
    """
    magnitude = activations.float().abs()
    relative = magnitude / magnitude.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return relative if output_norms is None else relative * output_norms


def squared_strengths(activations: torch.Tensor, output_norms: torch.Tensor | None = None) -> torch.Tensor:
    """Squared ``strengths``, summed over tokens: float32 [neurons]."""
    return strengths(activations, output_norms).square().sum(dim=0)


def score(strength: torch.Tensor) -> torch.Tensor:
    """Root mean square over tokens: [T, d_ff] -> float32 [d_ff]; does not depend on T when tokens repeat."""
    return strength.square().mean(dim=0).sqrt()


@dataclass(frozen=True, eq=False)
class TailCurve:
    """What dropping the weakest neurons costs on one sequence.

    ``scores`` float64 [d_ff], ascending; ``errors`` float64 [d_ff + 1]: ``errors[k]`` is the mean CETT over the
    sequence's ``tokens`` tokens with the k weakest neurons dropped.
    """

    scores: np.ndarray
    errors: np.ndarray
    tokens: int


def tail_curve(block: FeedForward, activations: torch.Tensor, scores: torch.Tensor) -> TailCurve:
    """The exact curve, one entry per neuron, for ``activations`` [T, d_ff] and ``scores`` [d_ff]."""
    order = torch.argsort(scores, stable=True)
    ratios = _tail_norms(activations.float()[:, order], _columns_in(order, block), block.down.out_features)
    return TailCurve(scores[order].double().cpu().numpy(), ratios.mean(dim=0).cpu().numpy(), activations.shape[0])


def _columns_in(order: torch.Tensor, block: FeedForward) -> Iterator[torch.Tensor]:
    """Columns of the block's down projection [d, d_ff], whole groups at a time where they have to be decoded."""
    if block.is_stored:
        yield from (block.output_columns(part) for part in order.split(_DECODED))
    else:
        yield block.output_weight()[:, order]


def _tail_norms(activations: torch.Tensor, down: Iterable[torch.Tensor], width: int) -> torch.Tensor:
    """``||sum_{j<k} a_j down_j|| / ||sum_j a_j down_j||`` for every token and k = 0..d_ff: float64 [T, d_ff + 1].

    ``down`` are [width, neurons], side by side, all but the last of whole groups.

    Within a group, with r the sum before it: ``||r + sum a_j w_j||^2 = ||r||^2 + sum_j a_j (2 r.w_j + 2 sum_{i<j} a_i
    w_i.w_j + a_j ||w_j||^2)``, a running sum over j.
    """
    tokens, d_ff = activations.shape
    squares = torch.zeros(tokens, d_ff + 1, dtype=torch.float64, device=activations.device)
    tail = torch.zeros(tokens, width, device=activations.device)
    groups = (group for part in down for group in part.split(_GROUP, dim=1))
    for start, w in zip(range(0, d_ff, _GROUP), groups, strict=True):
        a = activations[:, start : start + _GROUP]
        gram = w.T @ w
        cross = 2 * (tail @ w) + 2 * (a @ gram.triu(1)) + a * gram.diagonal()
        base = tail.double().square().sum(dim=1, keepdim=True)
        squares[:, start + 1 : start + 1 + a.shape[1]] = base + (a * cross).double().cumsum(dim=1)
        tail = tail + a @ w.T
        squares[:, start + a.shape[1]] = tail.double().square().sum(dim=1)  # the running sum has rounded at every step
    norms = squares.clamp_min(0).sqrt()
    output = tail.double().norm(dim=1, keepdim=True)
    return torch.where(output > 0, norms / output.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def truncation_errors(
    block: FeedForward, activations: torch.Tensor, strength: torch.Tensor, limits: np.ndarray
) -> np.ndarray:
    """Mean CETT, float64 like ``limits``, where every token drops its own neurons of a strength of at most the limit.

    ``activations`` and ``strength`` are [T, d_ff]. A token whose output is zero counts as 0.
    """
    activations, down = activations.float(), block.output_weight().float()
    output = (activations @ down.T).norm(dim=1)
    whole = output > 0
    errors = []
    for limit in limits:
        tail = torch.where(strength <= limit, activations, 0) @ down.T
        errors.append(float(torch.where(whole, tail.norm(dim=1) / output.clamp_min(1e-30), 0.0).mean()))
    return np.array(errors)


def thresholds(curves: Sequence[TailCurve], targets: np.ndarray) -> np.ndarray:
    """For each target, the largest threshold whose mean CETT over all tokens of all sequences is at most the target.

    Every sequence drops its neurons with ``score < threshold``. The mean is a step function that changes only at
    scores, so sorting all scores of all sequences gives it exactly. A target of 0 gives 0, which drops nothing.
    """
    tokens = sum(curve.tokens for curve in curves)
    scores = np.concatenate([curve.scores for curve in curves])
    rises = np.concatenate([np.diff(curve.errors) * (curve.tokens / tokens) for curve in curves])
    order = np.argsort(scores, kind="stable")
    # Dropping one neuron more can lower the error a little; the running maximum keeps "at most" true all the way down.
    means = np.maximum.accumulate(np.cumsum(rises[order]))
    first_above = np.searchsorted(means, targets, side="right")
    reached = scores[order][np.minimum(first_above, scores.size - 1)]
    return np.where(targets > 0, reached, 0.0)
