"""The training run: its text, what it measures, and verdicts against planted curves."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from tda_demo.errors import UserError
from tda_demo.theory.grammar import VOCABULARY, passages
from tda_demo.theory.settings import TrainingSettings
from tda_demo.theory.training import TrainingPoint, conclude, training

SHORT = TrainingSettings(steps=12, runs=1)


def test_text_follows_its_grammar() -> None:
    ids = passages(200, 48, torch.Generator().manual_seed(0))
    assert ids.shape == (200, 48) and int(ids.min()) >= 0 and int(ids.max()) < VOCABULARY
    assert (ids[:, 6::7] == 0).all() and (ids[:, 9] == ids[:, 5]).all()
    topics = (ids[:, 2::7] - 53) // 6
    common = topics.mode(dim=1, keepdim=True).values
    assert float((topics == common).float().mean()) > 0.8
    assert torch.equal(ids, passages(200, 48, torch.Generator().manual_seed(0)))


def test_it_learns_tells_every_point_and_repeats() -> None:
    points: list[TrainingPoint] = []
    finding = training(SHORT, points.append)
    assert [(point.function, point.step) for point in points] == [(f, s) for f in ("relu", "silu") for s in range(13)]
    assert points[12].loss.mean() < points[0].loss.mean() - 0.1
    assert 0.4 < points[0].zeros.mean() < 0.6 and not points[13].zeros.any()
    assert finding.complete and len(finding.checks) == 5
    assert len(finding.tables[0].columns["step"]) == 26 * 3


def test_seeds_fix_results() -> None:
    short = replace(SHORT, steps=2)
    finding = training(short)
    assert training(short) == finding
    assert training(replace(short, seed=5)) != finding


def test_stop_keeps_the_curve_so_far() -> None:
    stop = threading.Event()
    finding = training(SHORT, report=lambda p: p.done == 6 and stop.set(), stop=stop)
    assert not finding.complete and len(finding.checks) == 3 and "relu, run 1, 5 steps" in finding.verdict
    assert training(SHORT, stop=stop).checks == ()


@pytest.mark.parametrize(("slope", "outcome"), [(0.2, "supported"), (-0.2, "contradicted"), (0.0, "no effect")])
def test_verdict_on_planted_curves(slope: float, outcome: str) -> None:
    random = np.random.default_rng(1)

    def point(function: str, step: int) -> TrainingPoint:
        zeros, near, push = (random.normal(scale=0.01, size=(16, 3)) for _ in range(3))
        grown = slope * step / 100
        return TrainingPoint(function, 0, step, np.ones(16), 0.5 + zeros + grown, 0.5 + near + grown, push + slope)

    points = [point(function, step) for function in ("relu", "silu") for step in (0, 50, 100)]
    finding = conclude(points, SHORT)
    assert [check.outcome for check in finding.checks] == [outcome] * 5


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"runs": 0}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        TrainingSettings(**wrong)
