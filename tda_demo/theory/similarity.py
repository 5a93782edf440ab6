"""How alike two sets, or two rankings, are: on plain numpy arrays."""

from __future__ import annotations

import numpy as np


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
