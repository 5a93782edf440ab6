"""The training run: its text, what it measures, and verdicts against planted curves."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import tda_demo.theory.training
from tda_demo.support.errors import UserError
from tda_demo.theory.texts import VOCABULARY, grammar_passages
from tda_demo.theory.training import Training, TrainingPoint, conclude

SHORT = Training(steps=6, runs=4)


@pytest.fixture(autouse=True)
def few_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes longer than training."""
    monkeypatch.setattr(tda_demo.theory.training, "_HELD_OUT", 2)


def test_text_follows_its_grammar() -> None:
    ids = grammar_passages(200, 48, torch.Generator().manual_seed(0))
    assert ids.shape == (200, 48) and int(ids.min()) >= 0 and int(ids.max()) < VOCABULARY
    assert (ids[:, 6::7] == 0).all() and (ids[:, 9] == ids[:, 5]).all()
    topics = (ids[:, 2::7] - 53) // 6
    common = topics.mode(dim=1, keepdim=True).values
    assert float((topics == common).float().mean()) > 0.8
    assert torch.equal(ids, grammar_passages(200, 48, torch.Generator().manual_seed(0)))


def test_it_learns_tells_every_point_and_repeats() -> None:
    points: list[TrainingPoint] = []
    finding = SHORT.run(on_point=points.append)
    assert [(point.run, point.function, point.step) for point in points] == [
        (run, function, step) for run in range(4) for function in ("relu", "silu") for step in range(7)
    ]
    assert points[6].loss.mean() < points[0].loss.mean()
    assert 0.4 < points[0].zeros.mean() < 0.6 and not points[7].zeros.any()
    assert finding.complete and len(finding.checks) == 5
    assert {(len(check.estimates), check.overall.n, check.clusters) for check in finding.checks} == {(3, 4, "runs")}
    assert len(finding.tables[0].columns["step"]) == 8 * 7 * 3


def test_seeds_fix_results() -> None:
    short = replace(SHORT, steps=1)
    finding = short.run()
    assert short.run() == finding
    assert replace(short, seed=5).run() != finding


def test_stop_keeps_the_curve_so_far() -> None:
    stop = threading.Event()
    short = replace(SHORT, steps=3)  # of the fourth ReLU run two are done, of the fourth SiLU run none
    finding = short.run(report=lambda p: p.done == 20 and stop.set(), stop=stop)
    assert not finding.complete and len(finding.checks) == 3 and "relu, run 4, 1 steps" in finding.verdict
    assert len(finding.tables[0].columns["step"]) == (6 * 4 + 2) * 3
    assert short.run(stop=stop).checks == ()


def test_runs_that_differ_widen_the_interval_however_sure_each_is() -> None:
    """Every passage of a run agrees; the runs do not."""
    ends = {0: 0.1, 1: -0.1, 2: 0.3, 3: -0.3}
    points = [
        TrainingPoint("silu", run, step, np.ones(16), *(np.full((16, 3), step * end) for _ in range(3)))
        for run, end in ends.items()
        for step in (0, 1)
    ]
    assert [check.outcome for check in conclude(points, SHORT).checks] == ["no effect"] * 2


@pytest.mark.parametrize(("slope", "outcome"), [(0.2, "supported"), (-0.2, "contradicted"), (0.0, "no effect")])
def test_verdict_on_planted_curves(slope: float, outcome: str) -> None:
    random = np.random.default_rng(1)

    def point(function: str, run: int, step: int) -> TrainingPoint:
        zeros, near, push = (random.normal(scale=0.01, size=(16, 3)) for _ in range(3))
        grown = slope * step / 100
        return TrainingPoint(function, run, step, np.ones(16), 0.5 + zeros + grown, 0.5 + near + grown, push + slope)

    points = [point(function, run, step) for run in range(8) for function in ("relu", "silu") for step in (0, 50, 100)]
    finding = conclude(points, SHORT)
    assert [check.outcome for check in finding.checks] == [outcome] * 5


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"runs": 3}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Training(**wrong)
