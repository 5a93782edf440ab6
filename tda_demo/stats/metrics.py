"""Every number shown anywhere, defined once. Plain arithmetic on plain arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import intervals
from .clock import StepClock, shared_steps

if TYPE_CHECKING:
    from torch import Tensor  # methods of tensors are used, torch itself is not: the page starts without it

LEAST_SHOWN = 20  # positions: of fewer, no speedup is shown
MOST_DOUBT = 0.15  # half the interval, as a share of the ratio: with more, none is shown


@dataclass(frozen=True)
class Speedup:
    """How much faster an arm was than another over ``n`` positions that both have written, on the race's clock.

    ``ratio`` is the sum of the other's step times / the sum of its own, ``low`` and ``high`` the 95 % bootstrap
    interval; ``capped`` steps of the two counted for less than they took (``clock.StepClock``). ``median`` is that of
    the ratios position by position.
    """

    ratio: float
    low: float
    high: float
    n: int
    capped: int
    median: float

    @property
    def undecided(self) -> bool:
        """Whether the interval includes 1: no difference was measured."""
        return self.low <= 1 <= self.high

    @property
    def settled(self) -> bool:
        """Whether it is sure enough to be shown: enough positions, and an interval of 15 % either way at most."""
        return self.n >= LEAST_SHOWN and self.high - self.low <= 2 * MOST_DOUBT * self.ratio

    @property
    def winner(self) -> int:
        """1 where the arm was shown to be faster, by however much, -1 where the other one was, 0 where neither was."""
        return 0 if self.undecided or self.n < LEAST_SHOWN else 1 if self.ratio > 1 else -1

    @property
    def doubt(self) -> str:
        """Why nothing is said of it, in words; empty where it is shown, or at least who was faster."""
        if self.settled or self.winner:
            return ""
        return f"too {'few steps' if self.n < LEAST_SHOWN else 'noisy'} to tell, n = {self.n}"


def speedup(other: StepClock, own: StepClock, n: int | None = None) -> Speedup | None:
    """Of the arm of ``own`` over that of ``other``, on the first ``n`` positions; left out, on all that both have.

    None where there is none.
    """
    both = shared_steps(other, own)
    n = both if n is None else min(n, both)
    if n == 0:
        return None
    upper, lower = other.first(n), own.first(n)
    low, high = intervals.of_series_ratio(upper, lower)
    return Speedup(
        ratio=float(upper.sum() / lower.sum()),
        low=low,
        high=high,
        n=n,
        capped=sum(other.capped[:n]) + sum(own.capped[:n]),
        median=float(np.median(upper / lower)),
    )


@dataclass(frozen=True)
class MedianSpeedup:
    """Median of ``n`` ratios of times taken in pairs, dense over sparse, with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    n: int


def paired_speedup(dense_ms: Sequence[float], sparse_ms: Sequence[float]) -> MedianSpeedup:
    """Median of the ratios of times taken in pairs one after the other; see ``intervals.of_series_median``."""
    ratios = np.asarray(dense_ms, dtype=np.float64) / np.asarray(sparse_ms, dtype=np.float64)
    return MedianSpeedup(float(np.median(ratios)), *intervals.of_series_median(ratios), len(ratios))


def grouped_speedup(dense_ms: Sequence[Sequence[float]], sparse_ms: Sequence[Sequence[float]]) -> MedianSpeedup:
    """Median of the ratios of times taken in pairs, as many of every prompt (outer): prompts are resampled first."""
    ratios = np.asarray(dense_ms, dtype=np.float64) / np.asarray(sparse_ms, dtype=np.float64)
    return MedianSpeedup(float(np.median(ratios)), *intervals.of_groups_median(ratios), ratios.size)


def byte_bound(dense_bytes: float, sparse_bytes: float) -> float:
    """The speedup that reading fewer weight bytes allows: bytes a dense step reads / bytes a sparse step reads."""
    return dense_bytes / sparse_bytes


def efficiency(measured: float, bound: float) -> float:
    """Share of the byte bound that the measured speedup reaches."""
    return measured / bound


ALLOWED = 1.02  # of a byte bound: timing is not exact
_EQUAL = 0.005  # of a byte bound of 1


def is_equal_work(sparsity: float | None, bound: float | None) -> bool:
    """Whether an arm that leaves out ``sparsity`` of the neurons does what dense does, and reads nothing beside."""
    return sparsity == 0 and bound is not None and abs(bound - 1) < _EQUAL


def is_beyond(measured: Speedup | None, bound: float | None) -> bool:
    """Whether a gain is more than the bytes allow, so that other things than reading less were a part of it."""
    if measured is None or bound is None or measured.doubt or measured.winner <= 0:
        return False
    return (measured.ratio if measured.settled else measured.low) > ALLOWED * bound


def decided_efficiency(measured: Speedup | None, bound: float | None) -> float | None:
    """``efficiency`` where a difference was measured: beside a low bound no gain at all would look like most of it."""
    if measured is None or bound is None or not (measured.settled and measured.winner):
        return None
    return efficiency(measured.ratio, bound)


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
