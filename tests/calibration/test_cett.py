"""Scores, error curves and thresholds against float64 brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tda_demo.calibration.cett import TailCurve, score, strengths, tail_curve, thresholds
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.projection import Projection


def block_of(down: torch.Tensor) -> FeedForward:
    linear = nn.Linear(down.shape[1], down.shape[0], bias=False)
    linear.weight = nn.Parameter(down, requires_grad=False)
    return FeedForward(layer=0, gate=None, up=Projection.whole(linear), down=linear, d_ff=down.shape[1])


def brute_error(activations: torch.Tensor, down: torch.Tensor, dropped: torch.Tensor) -> float:
    """Mean over tokens of the relative output error, float64, straight from the definition."""
    a, w = activations.double(), down.double()
    errors = []
    for row in a:
        output = (w @ row).norm()
        errors.append(float((w[:, dropped] @ row[dropped]).norm() / output) if output > 0 else 0.0)
    return float(np.mean(errors))


@example(tokens=7, d_ff=113, d_model=1, seed=227)  # what neurons give nearly cancels out
@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 12), d_ff=st.integers(1, 150), d_model=st.integers(1, 20), seed=st.integers(0, 999))
def test_tail_curve_is_the_brute_force_error_at_every_neuron(tokens: int, d_ff: int, d_model: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    activations = torch.randn(tokens, d_ff, generator=random).relu()  # zeros, sometimes a whole row of them
    down = torch.randn(d_model, d_ff, generator=random)
    scores = score(strengths(activations))
    curve = tail_curve(block_of(down), activations, scores)
    order = torch.argsort(scores, stable=True)
    for dropped in {0, 1, d_ff // 2, d_ff}:
        expected = brute_error(activations, down, order[:dropped])
        assert curve.errors[dropped] == pytest.approx(expected, rel=1e-3, abs=2e-3)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 9), repeats=st.integers(2, 5), seed=st.integers(0, 999))
def test_score_does_not_change_when_the_prompt_is_repeated(tokens: int, repeats: int, seed: int) -> None:
    activations = torch.randn(tokens, 33, generator=torch.Generator().manual_seed(seed))
    once, often = score(strengths(activations)), score(strengths(activations.repeat(repeats, 1)))
    torch.testing.assert_close(once, often)


def test_score_is_its_definition_and_all_zero_rows_are_no_nan() -> None:
    activations = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    expected = torch.tensor([(0.6**2 / 3) ** 0.5, (0.8**2 / 3) ** 0.5, (1 / 3) ** 0.5])
    torch.testing.assert_close(score(strengths(activations)), expected)
    torch.testing.assert_close(strengths(activations, torch.tensor([2.0, 1.0, 1.0]))[0], torch.tensor([1.2, 0.8, 0.0]))


@settings(max_examples=30, deadline=None)
@given(sequences=st.integers(1, 4), d_ff=st.integers(2, 40), target=st.floats(0.01, 0.9), seed=st.integers(0, 999))
def test_threshold_is_the_largest_that_keeps_the_target(sequences: int, d_ff: int, target: float, seed: int) -> None:
    """Against trying every score as a threshold, with errors from the definition."""
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(16, d_ff, generator=random)
    texts = [torch.randn(3 + index, d_ff, generator=random) for index in range(sequences)]
    scores = [score(strengths(text)) for text in texts]
    curves = [tail_curve(block_of(down), text, each) for text, each in zip(texts, scores, strict=True)]
    found = float(thresholds(curves, np.array([target]))[0])

    def mean_error(threshold: float) -> float:
        tokens = sum(len(text) for text in texts)
        return sum(
            brute_error(text, down, (each.double() < threshold).nonzero().squeeze(1)) * len(text) / tokens
            for text, each in zip(texts, scores, strict=True)
        )

    assert mean_error(found) <= target + 1e-5
    candidates = sorted(float(value) for each in scores for value in each.double())
    above = [value for value in candidates if value > found]
    if above:
        # The next threshold up exceeds the target, or what lies between does (the error need not rise at every neuron).
        assert any(mean_error(np.nextafter(value, 1.0)) > target - 1e-5 for value in [found, *above])


def test_planted_neurons_are_told_apart() -> None:
    """Ten neurons carry the output, thirty are a hundredth as strong: a mild target drops the thirty and no other."""
    strong = torch.arange(0, 40, 4)
    activations = torch.full((6, 40), 0.01)
    activations[:, strong] = 1.0
    scores = score(strengths(activations))
    curve = tail_curve(block_of(torch.eye(40)), activations, scores)
    limit = thresholds([curve], np.array([0.1]))[0]
    assert (scores.double() >= limit).nonzero().squeeze(1).tolist() == strong.tolist()


def test_zero_target_drops_nothing_even_where_neurons_are_dead() -> None:
    curve = TailCurve(scores=np.array([0.0, 0.0, 0.5]), errors=np.array([0.0, 0.0, 0.0, 1.0]), tokens=4)
    assert thresholds([curve], np.array([0.0])) == [0.0]
