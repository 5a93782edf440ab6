"""What a decoder is to the compiled loops, whether they take one token or a prompt: its arrays, norms and positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .elementwise import add
from .nf4_loops import LOOP, f32


class Shape(NamedTuple):
    """Sizes and constants of a decoder. A cap of 0 means none; ``rotary`` is half the rotated part of a head."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    activation: int
    epsilon: float
    attention_scale: float
    attention_cap: float
    final_cap: float
    output_norms: bool
    head_norms: bool


class Shared(NamedTuple):
    """Weights that all arms read, layer first; d = hidden size, q = query, key and value rows together."""

    norms: np.ndarray  # float32 [layers, 4, d]: before attention, after it, before the MLP, after it
    head_norms: np.ndarray  # float32 [layers, 2, head_dim]: of queries, of keys
    qkv: np.ndarray  # codes [layers, q, ...] of rows of d
    qkv_scale: np.ndarray  # float32 [layers, q, ...], as ``formats.Rows.scales``
    qkv_bias: np.ndarray  # float32 [layers, q]
    out: np.ndarray  # codes [layers, d, ...] of rows of heads * head_dim
    out_scale: np.ndarray  # float32 [layers, d, ...]
    out_bias: np.ndarray  # float32 [layers, d]
    output_scale: np.ndarray  # float32 [layers, d], of the MLP's outputs
    down_bias: np.ndarray  # float32 [layers, d]
    final_norm: np.ndarray  # float32 [d]
    head: np.ndarray  # codes [vocabulary, ...] of rows of d
    head_scale: np.ndarray  # float32 [vocabulary, ...]
    window: np.ndarray  # int64 [layers], positions a layer attends to; 0 for all
    rope: np.ndarray  # int64 [layers], which of the cosine tables a layer uses


@njit(**LOOP)
def rms_norm(x, weight, epsilon, out):
    total = f32(0)
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    factor = f32(1) / np.sqrt(total / f32(x.shape[0]) + f32(epsilon))
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j]


@njit(**LOOP)
def _rotate(head, cosine, sine):
    """Rotary embedding of one head in place: pairs (j, j + half), what lies beyond them unchanged."""
    half = cosine.shape[0]
    for j in range(half):
        a, b = head[j], head[j + half]
        head[j] = a * cosine[j] - b * sine[j]
        head[j + half] = b * cosine[j] + a * sine[j]


@njit(**LOOP)
def add_update(x, update, weight, epsilon, normalise):
    """x += update, normalised first where the family has output norms."""
    if normalise:
        rms_norm(update, weight, epsilon, update)
    add(x, update)


@njit(**LOOP)
def position_heads(by_head, first, last, norm, cosine, sine, shape):
    """Norms, where the family has them, and rotary embedding of heads first to last."""
    for h in range(first, last):
        if shape.head_norms:
            rms_norm(by_head[h], norm, shape.epsilon, by_head[h])
        _rotate(by_head[h], cosine, sine)
