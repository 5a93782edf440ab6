"""The few statistics the experiments need, on plain numpy arrays.

What is resampled is always whole clusters (passages, sentences, pairs of sequences): tokens of one text are not
independent, and an interval that treats them as such is too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

LEAST_CLUSTERS = 4  # fewer give no interval worth the name
_RESAMPLES = 2000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval over ``n`` clusters."""

    value: float
    low: float
    high: float
    n: int


def means(values: np.ndarray) -> list[Estimate]:
    """Mean over clusters of every column: float [clusters, columns] -> one Estimate per column.

    Raises:
        ValueError: there are fewer than ``LEAST_CLUSTERS`` clusters.
    """
    return ratios(values, np.ones_like(values))


def mean(values: np.ndarray) -> Estimate:
    """Mean of one value per cluster, float [clusters]."""
    return means(np.asarray(values)[:, None])[0]


def ratios(numerators: np.ndarray, denominators: np.ndarray) -> list[Estimate]:
    """Sum of numerators over sum of denominators, both float [clusters, columns], one Estimate per column.

    With sums and counts per cluster this is the mean over all entries. A resample whose denominator is zero is left
    out; a column whose denominators are all zero is 0 with an interval that says nothing (0 to 0).
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    weights = _resampled(len(numerators))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = numerators.sum(axis=0) / denominators.sum(axis=0)
        resampled = (weights @ numerators) / (weights @ denominators)
    return _estimates(values, resampled, len(numerators))


def regression(responses: Sequence[np.ndarray], predictors: Sequence[np.ndarray]) -> list[Estimate]:
    """Ordinary least squares with an intercept; whole clusters are resampled.

    Args:
        responses: per cluster float [rows].
        predictors: per cluster float [rows, k], without the intercept's column.

    Returns:
        The intercept, then the k coefficients in the predictors' order. Where predictors are collinear it is the
        least-norm solution.
    """
    designs = [np.column_stack([np.ones(len(own)), own]) for own in predictors]
    squares = np.stack([design.T @ design for design in designs])
    products = np.stack([design.T @ own for design, own in zip(designs, responses, strict=True)])
    weights = _resampled(len(designs))
    resampled_squares = np.einsum("rc,cij->rij", weights, squares)
    resampled = np.einsum("rij,rj->ri", np.linalg.pinv(resampled_squares, hermitian=True), weights @ products)
    values = np.linalg.pinv(squares.sum(axis=0), hermitian=True) @ products.sum(axis=0)
    return _estimates(values, resampled, len(designs))


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|A and B| / |A or B| of bool sets [..., d]: float64 [...]; two empty sets are equal, so 1."""
    either = (first | second).sum(axis=-1)
    both = (first & second).sum(axis=-1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def chance_jaccard(keep: float) -> float:
    """What two independent random sets that each hold the share ``keep`` of all neurons have, for many neurons."""
    return keep / (2 - keep)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the last axis, equal values sharing their mean rank: float64, same shape."""
    flat = values.reshape(-1, values.shape[-1])
    order = np.argsort(flat, axis=1, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=1)
    places = np.broadcast_to(np.arange(flat.shape[1]), flat.shape)
    starts = np.concatenate([np.ones((len(flat), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    ends = np.concatenate([starts[:, 1:], np.ones((len(flat), 1), bool)], axis=1)
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, flat.shape[1])[:, ::-1], axis=1)[:, ::-1]
    result = np.empty(flat.shape, np.float64)
    np.put_along_axis(result, order, (first + last) / 2, axis=1)
    return result.reshape(values.shape)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis, float64 [...]; of ranks it is Spearman's. 0 where one is constant."""
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    spread = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.where(spread > 0, (first * second).sum(axis=-1) / np.where(spread > 0, spread, 1), 0.0)


def _resampled(clusters: int) -> np.ndarray:
    """How often each cluster is drawn in each resample: float64 [resamples, clusters], the same at every call."""
    if clusters < LEAST_CLUSTERS:
        raise ValueError(f"{clusters} clusters: at least {LEAST_CLUSTERS} are needed for an interval")
    random = np.random.default_rng(0)
    return random.multinomial(clusters, np.full(clusters, 1 / clusters), size=_RESAMPLES).astype(np.float64)


def _estimates(values: np.ndarray, resampled: np.ndarray, n: int) -> list[Estimate]:
    """Expanded percentile intervals (Hesterberg, arXiv 1411.5279): plain percentiles are too narrow for few clusters.

    The tail is widened from 2.5 % to Phi(-t sqrt(n / (n - 1))), t Student's 97.5 % point with n - 1 degrees of freedom.
    """
    tail = 100 * _NORMAL.cdf(-_student(n - 1) * sqrt(n / (n - 1)))
    estimates = []
    for value, column in zip(values, resampled.T, strict=True):
        finite = column[np.isfinite(column)]
        low, high = np.percentile(finite, [tail, 100 - tail]) if np.isfinite(value) and len(finite) else (0.0, 0.0)
        estimates.append(Estimate(float(value) if np.isfinite(value) else 0.0, float(low), float(high), n))
    return estimates


def _student(degrees: int) -> float:
    """Student's 97.5 % point by its expansion in 1 / degrees (Abramowitz and Stegun 26.7.5); 0.2 % off at 3."""
    z = _NORMAL.inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
