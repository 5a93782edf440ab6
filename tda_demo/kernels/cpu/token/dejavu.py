"""DejaVu's kernel: two matrices of low rank predict every neuron, those predicted to fire are computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..mlp import kernel, mlp
from ..rows import matvec


class Predictors(NamedTuple):
    """All layers' predictors, and the logit from which a neuron is computed.

    Every thread makes the ``r`` numbers between the matrices for itself: they are few, and the first matrix, once read,
    is in the cache that the cores share.
    """

    first: np.ndarray  # int8 [layers, r, d]
    first_scale: np.ndarray  # float32 [layers, r]
    second: np.ndarray  # int8 [neurons, r]
    second_scale: np.ndarray  # float32 [neurons]
    limits: np.ndarray  # float32 [layers]


@kernel(Predictors)
def _predicted(rule, layer, neurons, chosen, x, first, last, activation, up, activations, out):
    rank = rule.first.shape[1]
    between = np.empty(rank, np.float32)
    matvec(rule.first[layer], rule.first_scale[layer], x, None, 0, rank, between)
    matvec(rule.second, rule.second_scale, between, None, first, last, activations)
    limit, end = rule.limits[layer], first
    for i in range(first, last):
        chosen[end] = i
        end += activations[i] >= limit
    return mlp(None, layer, neurons, chosen, x, first, end, activation, up, activations, out)
