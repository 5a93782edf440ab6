"""Every number shown anywhere, defined once. Plain arithmetic on plain arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import intervals

if TYPE_CHECKING:
    from torch import Tensor  # methods of tensors are used, torch itself is not: the page starts without it

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Speedup:
    """Median of dense over sparse step time, its 95 % bootstrap interval, and the number of pairs of times ``n``."""

    median: float
    low: float
    high: float
    n: int

    @property
    def undecided(self) -> bool:
        """Whether the interval includes 1: no difference was measured."""
        return self.low <= 1 <= self.high


def speedup(dense_ms: Sequence[float], sparse_ms: Sequence[float]) -> Speedup | None:
    """Median over positions of dense step time / sparse step time at the same position, warm-up steps left out.

    None while no position beyond the warm-up has both times.
    """
    n = min(len(dense_ms), len(sparse_ms))
    if n <= WARM_UP_STEPS:
        return None
    return paired_speedup(dense_ms[WARM_UP_STEPS:n], sparse_ms[WARM_UP_STEPS:n])


def paired_speedup(dense_ms: Sequence[float], sparse_ms: Sequence[float]) -> Speedup:
    """Median of the ratios of times taken in pairs one after the other; see ``intervals.of_series_median``."""
    ratios = np.asarray(dense_ms, dtype=np.float64) / np.asarray(sparse_ms, dtype=np.float64)
    return Speedup(float(np.median(ratios)), *intervals.of_series_median(ratios), len(ratios))


def grouped_speedup(dense_ms: Sequence[Sequence[float]], sparse_ms: Sequence[Sequence[float]]) -> Speedup:
    """Median of the ratios of times taken in pairs, as many of every prompt (outer): prompts are resampled first."""
    ratios = np.asarray(dense_ms, dtype=np.float64) / np.asarray(sparse_ms, dtype=np.float64)
    return Speedup(float(np.median(ratios)), *intervals.of_groups_median(ratios), ratios.size)


def tokens_per_second(step_ms: Sequence[float]) -> float | None:
    """1000 over the median step time, warm-up steps left out; None before there is such a step."""
    timed = step_ms[WARM_UP_STEPS:]
    return 1000 / float(np.median(timed)) if len(timed) else None


def byte_bound(dense_bytes: float, sparse_bytes: float) -> float:
    """The speedup that reading fewer weight bytes allows: bytes a dense step reads / bytes a sparse step reads."""
    return dense_bytes / sparse_bytes


def efficiency(measured: float, bound: float) -> float:
    """Share of the byte bound that the measured speedup reaches."""
    return measured / bound


def decided_efficiency(measured: Speedup | None, bound: float | None) -> float | None:
    """``efficiency`` where a difference was measured: beside a low bound no gain at all would look like most of it."""
    if measured is None or bound is None or measured.undecided:
        return None
    return efficiency(measured.median, bound)


def divergence(dense_tokens: Sequence[int], sparse_tokens: Sequence[int]) -> int | None:
    """Index of the first token where two free-running texts differ; None where one is the start of the other."""
    for index, (dense, sparse) in enumerate(zip(dense_tokens, sparse_tokens, strict=False)):
        if dense != sparse:
            return index
    return None


@dataclass(frozen=True, eq=False)
class ForcedComparison:
    """Two models on one given text, a value a position [positions]: losses and KL float32 in nats, ``agrees`` bool.

    A loss is -log p(token); ``kl`` is KL(dense || sparse); ``agrees`` where both have the same argmax.
    """

    dense_loss: Tensor
    sparse_loss: Tensor
    kl: Tensor
    agrees: Tensor


def compare_forced(dense_logits: Tensor, sparse_logits: Tensor, targets: Tensor) -> ForcedComparison:
    """Teacher-forced comparison in float32; logits [positions, vocabulary], ``targets`` int64 [positions].

    KL is right to about 1e-5 nats; the same logits twice give exactly 0.
    """
    log_p = dense_logits.float().log_softmax(dim=-1)
    log_q = log_p if sparse_logits is dense_logits else sparse_logits.float().log_softmax(dim=-1)
    given = targets[:, None]
    return ForcedComparison(
        dense_loss=-log_p.gather(1, given)[:, 0],
        sparse_loss=-log_q.gather(1, given)[:, 0],
        kl=(log_p.exp() * (log_p - log_q)).sum(dim=-1),
        agrees=dense_logits.argmax(dim=-1) == sparse_logits.argmax(dim=-1),
    )


def perplexity(loss: float, tokens: int) -> float:
    """exp of the mean loss; ``loss`` in nats summed over ``tokens``. Infinite where that is beyond a float."""
    try:
        return math.exp(loss / tokens)
    except OverflowError:
        return math.inf


def mask_recall(contributions: np.ndarray, active: np.ndarray) -> float:
    """Share of a token's own strongest neurons that the active set has: mean over tokens, 0..1.

    ``contributions`` float32 [T, d_ff], how much each neuron adds to each token's output (``|a_j| ||Wd[:, j]||``, the
    order in which CETT drops neurons, arXiv 2402.03804); ``active`` bool [d_ff], or [T, d_ff] where every token has a
    set of its own. A token's strongest are as many as are active, fewer where fewer fire at all; where none does, there
    is nothing to miss, and where none is active, everything is missed.
    """
    sets = np.broadcast_to(active, contributions.shape)
    kept = sets.sum(axis=1)
    in_order = -np.sort(-contributions, axis=1)
    least = np.take_along_axis(in_order, np.maximum(kept - 1, 0)[:, None], axis=1)
    strongest = (contributions >= least) & (contributions > 0)
    count = strongest.sum(axis=1)
    shares = np.where(count > 0, (strongest & sets).sum(axis=1) / np.maximum(count, 1), 1.0)
    return float(np.where(kept == 0, 0.0, shares).mean())


def mlp_share(kept: Sequence[float], widths: Sequence[int]) -> float:
    """Share of the MLP weights that are read: neurons computed / all neurons, equal bytes a neuron."""
    return sum(kept) / sum(widths)


def mlp_share_read(dense_bytes: int | None, bound: float | None, mlp_bytes: float) -> float | None:
    """Share of the ``mlp_bytes`` that a step reads whose ``bound`` over a dense one's ``dense_bytes`` is known.

    A method's own predictors count as read, and what it leaves out elsewhere as left out of the MLP. None where the
    bytes depend on the token and no step was taken.
    """
    return None if dense_bytes is None or bound is None else 1 - dense_bytes * (1 - 1 / bound) / mlp_bytes


def frontier(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats, by rising cost: none costs less, or as little, at a lower loss.

    Both are to be small. Of equal points the first is kept.
    """
    best: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], losses[index])):
        if not best or losses[index] < losses[best[-1]]:
            best.append(index)
    return best
