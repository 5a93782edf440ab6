"""95 % intervals of what is drawn anew: medians of a series and of groups, a ratio of sums, and how far few draws have
to be widened.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np

_RESAMPLES = 1000
_LEAST_BLOCKS = 4
_NORMAL = NormalDist()


def of_series_median(values: np.ndarray) -> tuple[float, float]:
    """Of the median of ``values`` [n], at least one, taken one after the other: circular block bootstrap, fixed seed.

    Neighbours in time are alike, so runs of consecutive values are drawn, not single ones (Politis and Romano 1992),
    and the percentiles are widened as for as many draws as there are runs (``expanded_tail``). Of independent values
    the interval is a little too wide; of AR(1) noise it covers less than 95 % where a run is short beside the noise's
    memory: 91 % at a correlation of 0.5 and 87 % at 0.7 with n = 29, 94 % and 91 % with n = 253 (simulated).
    """
    n, length = len(values), block_length(len(values))
    blocks = n / length
    starts = np.random.default_rng(0).integers(0, n, (_RESAMPLES, -(-n // length)))
    ordered, ranks = np.sort(values), np.argsort(np.argsort(values, kind="stable")).astype(np.int32)
    ranks = ranks.astype(np.int16) if n < 2**15 else ranks  # numpy sorts 16 bits by radix: ten times as fast
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([ranks, ranks[: length - 1]]), length)
    drawn = np.sort(windows[starts].reshape(_RESAMPLES, -1)[:, :n], axis=1, kind="stable")
    medians = (ordered[drawn[:, (n - 1) // 2]] + ordered[drawn[:, n // 2]]) / 2
    return _percentiles(medians, expanded_tail(blocks) if blocks > 1 else 0.0)


def of_series_ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """Of the ratio of the sums of two series [n], at least one each, taken position by position: the same bootstrap of
    runs of neighbours as ``of_series_median``, each run drawn with both its sums.
    """
    n, length = len(numerators), block_length(len(numerators))
    blocks = -(-n // length)
    starts = np.random.default_rng(0).integers(0, n, (_RESAMPLES, blocks))
    # The last run is cut, so that a resample has n values as the series has.
    ends = starts + np.array([length] * (blocks - 1) + [n - length * (blocks - 1)])
    sums = [
        np.concatenate([[0.0], np.cumsum(np.concatenate([series, series[:length]]))])
        for series in (numerators, denominators)
    ]
    upper, lower = ((total[ends] - total[starts]).sum(axis=1) for total in sums)
    return _percentiles(upper / lower, expanded_tail(n / length) if n > length else 0.0)


def block_length(n: int) -> int:
    """How many consecutive of ``n`` values are drawn together: 2 n^(1/3), but no more than leaves four runs.

    n^(1/3) is the order at which the bootstrap's variance errs least (Hall, Horowitz and Jing 1995); the factor is the
    best one for AR(1) noise of a correlation between 0.5 and 0.7. Fewer than four runs have too few different medians.
    """
    return max(1, min(int(2 * n ** (1 / 3)), n // _LEAST_BLOCKS))


def of_groups_median(values: np.ndarray) -> tuple[float, float]:
    """Of the median of all ``values`` [groups, each]: groups are drawn first, then values within each; fixed seed.

    Values of one group share what sets it apart, so drawing from all of them at once would be too sure.
    """
    groups, each = values.shape
    random = np.random.default_rng(0)
    chosen = random.integers(0, groups, (_RESAMPLES, groups))
    within = random.integers(0, each, (_RESAMPLES, groups, each))
    medians = np.median(values[chosen[:, :, None], within].reshape(_RESAMPLES, -1), axis=1)
    return _percentiles(medians, 0.025)


def expanded_tail(n: float) -> float:
    """The share to cut off at each end of a bootstrap's distribution of ``n`` > 1 draws, for a 95 % interval.

    2.5 % is too much for few draws; the tail is Phi(-t sqrt(n / (n - 1))), t Student's 97.5 % point with n - 1 degrees
    of freedom (Hesterberg, arXiv 1411.5279).
    """
    return _NORMAL.cdf(-student(n - 1) * sqrt(n / (n - 1)))


def student(degrees: float) -> float:
    """Student's 97.5 % point by its expansion in 1 / degrees (Abramowitz and Stegun 26.7.5); 0.12 % low at 3."""
    z = _NORMAL.inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _percentiles(values: np.ndarray, tail: float) -> tuple[float, float]:
    low, high = np.percentile(values, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)
