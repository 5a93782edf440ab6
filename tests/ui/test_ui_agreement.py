"""Lanes, rates, headline and verdict never contradict each other on who is faster, whatever the steps took."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from tda_demo.decode.text import TextStream
from tda_demo.methods import GRIFFIN, TT
from tda_demo.race import Finished, Lane, PromptRead, run_lanes
from tda_demo.race.result import ArmResult, FirstEnd, MethodResult, RaceResult
from tda_demo.stats import metrics
from tda_demo.stats.clock import shared_steps
from tda_demo.ui.race.runs import Ready
from tda_demo.ui.race.stage import stage
from tda_demo.ui.race.view import RaceView
from tda_demo.ui.requests import RunRequest

# Usual steps around a base, and now and then one during which the machine did something else.
STEP = st.one_of(st.floats(0.8, 1.25), st.floats(0.8, 1.25), st.floats(0.8, 1.25), st.floats(1, 60))
TIMES = st.tuples(st.floats(0.5, 2.0), st.lists(STEP, min_size=5, max_size=70)).map(
    lambda drawn: [drawn[0] * factor for factor in drawn[1]]
)


def lane(name: str, seconds: list[float], now: list[float]) -> Lane:
    """Takes as long a step as it is told to, until no time is left for another."""
    left = iter(seconds)

    def step(_token: int) -> torch.Tensor:
        now[0] += next(left)
        return torch.nn.functional.one_hot(torch.tensor(5), 97).float()

    arm: Any = SimpleNamespace(step=step, weight_bytes=1, packing_ms=0.0)
    tokens = TextStream(tiny_tokenizer())
    made = Lane(name, arm, lambda logits: int(logits.argmax()), tokens, frozenset({2}), len(seconds) + 1, "length")  # type: ignore[arg-type]
    made.clock = lambda: now[0]
    return made


def race_of(*times: list[float]) -> tuple[RaceView, list[Lane], list[Any]]:
    """A view of a race whose steps take so long, its lanes, and the events after the prompt."""
    now = [0.0]
    lanes = [lane(name, seconds, now) for name, seconds in zip(("dense", "sparse", "rival"), times, strict=False)]
    rival = TT() if len(times) == 3 else None
    view = RaceView(RunRequest("p", GRIFFIN(keep=0.5), max_new_tokens=80, rival=rival))
    read = PromptRead(("a",), 1.0, 1.0, 1.0, None, np.zeros((1, 1), dtype=np.int64), 1.25)
    for event in (Ready((8,), 1.0), PromptRead(**{**vars(read), "rival": read})):
        view.apply(event)
    first = torch.nn.functional.one_hot(torch.tensor(7), 97).float()
    for own in lanes:
        for event in own.start(first):
            view.apply(event)
    events: list[Any] = []
    running = run_lanes(lanes, threading.Event())
    try:
        while True:
            events.append(next(running))
    except StopIteration as ended:
        events.append(Finished(result(lanes, ended.value)))
    return view, lanes, events


def result(lanes: list[Lane], first_end: FirstEnd | None) -> RaceResult:
    shared = shared_steps(*(own.times for own in lanes))
    arms = [ArmResult("", len(own.tokens), own.step_ms, 1.0, own.times.rate(shared), 1, "length") for own in lanes]
    speeds = [metrics.speedup(lanes[0].times, own.times, shared) for own in lanes]
    rival = MethodResult("tt", {}, arms[2], speeds[2], 1.25, None, [0.5], None, "") if len(lanes) == 3 else None
    over = metrics.speedup(lanes[2].times, lanes[1].times, shared) if rival else None
    return RaceResult(
        "m", "cpu", "int8", "e", "griffin", {}, 1, arms[0], arms[1], speeds[1], 1.25, None, [0.5], None,
        {"cpu": "c", "threads": 1}, "", first_end, rival, over,
    )  # fmt: skip


def check(view: RaceView) -> None:
    """No claim of the page contradicts another one."""
    value = stage(view)
    slots = value["slots"]
    rates = {arm: slots[f"{arm}.rate"] for arm in view.racing}
    for arm in list(view.racing)[1:]:
        standing, prefix = value["standing"][arm], "" if arm == "sparse" else "rival."
        number, claim = slots[f"{prefix}speedup"], slots[f"{prefix}claim"]
        in_words = view.over and standing in ("faster", "slower") and claim.endswith("×")  # who, not how much
        assert bool(number) != in_words if standing else not number
        if "–" not in rates.values():
            own, dense = float(rates[arm]), float(rates["dense"])
            assert {"faster": own >= dense, "slower": own <= dense}.get(standing, True)
        if standing == "faster":
            assert value["leader"] != "dense" and claim.startswith("faster")
        if standing == "slower":
            assert value["leader"] != arm and "slower" in claim
    if (leader := value["leader"]) is not None:
        assert all(float(rates[leader]) >= float(rate) for rate in rates.values())
    if view.result is not None:
        said = slots["verdict"]
        assert ("was faster, " in said) <= (value["standing"]["sparse"] == "faster")
        assert ("slower than dense" in said) <= (value["standing"]["sparse"] == "slower")


# Twice as slow, and too few steps to say by how much: at first of a race that goes on, then of one that is over.
@example([[1.0] * 20, [2.0] * 19 + [6.0]])
@example([[1.0] * 30, [2.0] * 15 + [6.0] * 5])
@settings(max_examples=60)
@given(st.lists(TIMES, min_size=2, max_size=3))
def test_everything_agrees_at_every_moment_of_a_race(times: list[list[float]]) -> None:
    view, _, events = race_of(*times)
    for at, event in enumerate(events):
        view.apply(event)
        if at % 7 == 0 or view.over or len(events) < 60:
            check(view)


@settings(max_examples=60)
@given(TIMES, TIMES)
def test_the_arm_that_is_ahead_took_less_time_for_what_both_have_written(
    dense: list[float], sparse: list[float]
) -> None:
    """Between two arms the lead in tokens alone decides, while both write."""
    view, lanes, events = race_of(dense, sparse)
    for event in events[:-1]:
        view.apply(event)
        tokens = {name: arm.tokens for name, arm in view.racing.items()}
        if view.first_end is None and max(tokens.values()) > min(tokens.values()) + 1:
            assert view.leader == max(tokens, key=lambda arm: tokens[arm])
    assert lanes[0].times.total == pytest.approx(view.dense.times.total)
