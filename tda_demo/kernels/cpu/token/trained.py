"""Kernels of the trained methods: DejaVu's predictors choose neurons, MoEfication's router chooses experts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..elementwise import tanh
from ..layer import kernel, mlp
from ..rows import f32, matvec


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
def _predicted(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    rank = rule.first.shape[1]
    between = np.empty(rank, np.float32)
    matvec(rule.first[layer], rule.first_scale[layer], x, None, 0, rank, between)
    matvec(rule.second, rule.second_scale, between, None, first, last, activations)
    limit, end = rule.limits[layer], first
    for i in range(first, last):
        chosen[end] = i
        end += activations[i] >= limit
    return mlp(None, layer, thread, threads, neurons, chosen, x, first, end, activation, up, activations, out)


class Experts(NamedTuple):
    """All layers' routers, and the score from which an expert is computed.

    The neurons of an expert lie side by side: those of expert e of layer l at the places ``bounds[l E + e]`` to
    ``bounds[l E + e + 1]``. Every thread asks the router for itself, which is small and, once read, in the cache that
    the cores share.
    """

    bounds: np.ndarray  # int64 [layers * E + 1]
    router: np.ndarray  # int8 [layers, E, d]
    router_scale: np.ndarray  # float32 [layers, E]
    mix: np.ndarray  # int8 [layers, E, E]
    mix_scale: np.ndarray  # float32 [layers, E]
    limits: np.ndarray  # float32 [layers]


@kernel(Experts)
def _routed(rule, layer, thread, threads, neurons, chosen, x, first, last, activation, up, activations, out):
    count = rule.router.shape[1]
    hidden, scores = np.empty(count, np.float32), np.empty(count, np.float32)
    matvec(rule.router[layer], rule.router_scale[layer], x, None, 0, count, hidden)
    square = f32(1e-24)
    for j in range(x.shape[0]):
        square += x[j] * x[j]
    inverse = f32(1) / np.sqrt(square)
    for e in range(count):
        hidden[e] = tanh(hidden[e] * inverse)
    matvec(rule.mix[layer], rule.mix_scale[layer], hidden, None, 0, count, scores)
    end = first
    for e in range(count):
        if scores[e] >= rule.limits[layer]:
            here = layer * count + e
            for i in range(max(first, rule.bounds[here]), min(last, rule.bounds[here + 1])):
                chosen[end] = i
                end += 1
    return mlp(None, layer, thread, threads, neurons, chosen, x, first, end, activation, up, activations, out)
