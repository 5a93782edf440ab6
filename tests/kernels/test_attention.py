"""Attention's loops against float64, for groups, sizes of heads and shares of positions of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from tda_demo.kernels.cpu.attention import PADDING, attend, combine
from tda_demo.kernels.cpu.attention_loops import HEADS
from tda_demo.kernels.cpu.halves import MOST, as_halves, keep
from tda_demo.kernels.cpu.partition import share
from tda_demo.kernels.cpu.processor import HAS_HALVES

SCALE = np.float32(0.3)


def expected(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, first: int, last: int, cap: float) -> list:
    """Softmax attention over positions first to last, in float64."""
    group = len(queries) // len(keys)
    outs = []
    for h, query in enumerate(queries.astype(np.float64)):
        products = float(SCALE) * (keys[h // group, first:last].astype(np.float64) @ query)
        products = cap * np.tanh(products / cap) if cap else products
        weights = np.exp(products - products.max())
        outs.append(weights / weights.sum() @ values[h // group, first:last].astype(np.float64))
    return outs


@settings(max_examples=60, deadline=None)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    head_dim=st.sampled_from([2, 8, 16, 20, 64, 80]),
    first=st.integers(0, 9),
    count=st.integers(1, 70),
    threads=st.integers(1, 4),
    cap=st.sampled_from([0.0, 2.0, 50.0]),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    halves=st.sampled_from([False, HAS_HALVES]),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_the_softmax_of_all_shares(
    kv_heads: int,
    group: int,
    head_dim: int,
    first: int,
    count: int,
    threads: int,
    cap: float,
    spread: float,
    halves: bool,
    seed: int,
) -> None:
    draw, heads, places = np.random.default_rng(seed), kv_heads * group, first + count + 3
    queries = (spread * draw.standard_normal((heads, head_dim))).astype(np.float32)
    keys, values = (draw.standard_normal((kv_heads, places, head_dim)).astype(np.float32) for _ in range(2))
    keys[:, first + count :] = values[:, first + count :] = np.nan  # not read, nor what comes before
    keys[:, :first] = values[:, :first] = np.nan
    if halves:  # those that hold the numbers exactly
        keys, values = (array.astype(np.float16).astype(np.float32) for array in (keys, values))
    stored = [array.astype(np.float16).view(np.uint16) for array in (keys, values)] if halves else [keys, values]
    outs = np.full((threads, heads, head_dim), np.nan, np.float32)
    peaks, sums = np.full((2, threads, heads), np.nan, np.float32)
    mixed = np.full((heads, head_dim), np.nan, np.float32)
    for t in range(threads):  # where there are more threads than positions, some have none
        begin, end = share(count, t, threads)
        weights = np.full((HEADS, places + PADDING), np.nan, np.float32)
        part = (weights, outs[t], peaks[t], sums[t])
        attend(queries, *stored, first + begin, first + end, SCALE, cap, *part)
    combine(outs, peaks, sums, mixed)
    right = expected(queries, keys, values, first, first + count, cap)
    np.testing.assert_allclose(mixed, right, rtol=2e-4, atol=2e-5)


@njit
def kept(numbers, row):
    keep(numbers, row)


@pytest.mark.skipif(not HAS_HALVES, reason="caches are float32 on this processor")
def test_numbers_are_kept_as_the_nearest_halves() -> None:
    draw = np.random.default_rng(0)
    numbers = np.concatenate([draw.standard_normal(61) * 10.0 ** draw.integers(-9, 6, 61), [0, -0.0, 65519, 1e9, -1e9]])
    numbers = numbers.astype(np.float32)
    row = np.zeros(len(numbers), np.uint16)
    kept(numbers, row)
    nearest = np.clip(numbers, -MOST, MOST).astype(np.float16)
    np.testing.assert_array_equal(row.view(np.float16), nearest)
    np.testing.assert_array_equal(as_halves(torch.from_numpy(numbers)).view(np.float16), nearest)
