"""One run, from the request to its events, on a tiny model; and the models in memory."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from plain import plain_tda

from tda_demo.evaluate.budget import QualityCurve
from tda_demo.methods import GRIFFIN, Random
from tda_demo.model import loading as models
from tda_demo.model.loading import LoadedModel
from tda_demo.race import Finished, PromptRead, Stepped
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress, Report
from tda_demo.ui.job import TimedOut
from tda_demo.ui.models import Models
from tda_demo.ui.race.runs import Ready, SettingFound, race_job
from tda_demo.ui.requests import LIMITS, Budget, Limits, RunRequest
from tda_demo.ui.worker import Loading, Ticket


@pytest.fixture
def loads(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, str | None]]:
    """What was asked of the loader, which always gives the tiny model."""
    asked: list[tuple[str | None, str | None]] = []

    def load_model(name: str | None, *, precision: str | None, report: Report) -> LoadedModel:
        if name == "broken":
            raise UserError("It is broken.")
        report(Progress("Loading", 1, 2, "B"))
        asked.append((name, precision))
        return lm

    monkeypatch.setattr(models, "load_model", load_model)
    return asked


def run(request: RunRequest, limits: Limits = LIMITS, stopped: bool = False) -> list[Any]:
    """Everything a run tells, in order."""
    ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
    if stopped:
        ticket.stop.set()
    events = list(race_job(request, limits)(Models(2), ticket=ticket))
    return ticket.drain(0.01) + events


def curve_of(method: str, keep: tuple[float, float], kl: tuple[float, float]) -> QualityCurve:
    """Of two places, where it keeps and reads as much."""
    return QualityCurve(method, "keep", keep, kl, (1.0, 2.0), keep, keep, "float32", "answers", 1, 1)


@pytest.mark.usefixtures("loads")
class TestARun:
    def test_loads_races_and_finishes(self) -> None:
        events = run(RunRequest("hello", plain_tda(online=True), max_new_tokens=4))
        assert isinstance(events[0], Loading)
        assert any(isinstance(event, PromptRead) for event in events) and isinstance(events[-1], Finished)

    def test_settings_reach_the_race(self) -> None:
        method = plain_tda(cett=0.3, online=True, exempt=(0,), weighted=True)
        finished = run(RunRequest("hello", method, max_new_tokens=2))[-1]
        told = finished.result.settings
        assert (told["cett"], told["online"], told["weighted"], tuple(told["exempt"])) == (0.3, True, True, (0,))
        assert finished.result.dense.tokens == 2 and finished.result.sparsity[0] == 0

    def test_what_the_model_holds_is_told_before_the_race(self, lm: LoadedModel) -> None:
        events = run(RunRequest("hello", GRIFFIN(keep=0.5), max_new_tokens=2))
        ready = next(event for event in events if isinstance(event, Ready))
        sets = next(event for event in events if isinstance(event, PromptRead))
        assert sets.active is not None and ready.d_ff == sets.active.d_ff
        result = events[-1].result
        # Half of the neurons of every layer: half of the MLP bytes.
        assert result.dense.weight_bytes * (1 - 1 / result.byte_bound) == pytest.approx(ready.mlp_bytes / 2)

    @pytest.mark.parametrize("budget", [Budget("kl", 0.3), Budget("mlp_share", 0.75)])
    def test_a_budget_turns_the_dial(self, budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
        curve = curve_of("griffin", (1.0, 0.5), (0.0, 0.6))
        monkeypatch.setattr("tda_demo.evaluate.budget.quality_curve", lambda *_, **__: curve)
        events = run(RunRequest("hello", GRIFFIN(keep=0.9), budget, max_new_tokens=2))
        found = next(event for event in events if isinstance(event, SettingFound))
        assert (found.method.name, found.budget, found.setting) == ("griffin", budget, "keep")
        assert (found.value, found.kl, found.mlp_share) == pytest.approx((0.75, 0.3, 0.75))
        assert events[-1].result.settings["keep"] == pytest.approx(0.75)

    def test_a_budget_turns_both_dials_of_a_duel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        curves = {
            "griffin": curve_of("griffin", (1.0, 0.5), (0.0, 0.6)),
            "random": curve_of("random", (1.0, 0.0), (0.0, 3.0)),
        }
        monkeypatch.setattr("tda_demo.evaluate.budget.quality_curve", lambda _lm, method, **_: curves[method.name])
        budget = Budget("mlp_share", 0.75)
        request = RunRequest("hello", GRIFFIN(), budget, max_new_tokens=2, rival=Random(seed=3))
        events = run(request)
        found = [event for event in events if isinstance(event, SettingFound)]
        assert [(each.method.name, each.value) for each in found] == [("griffin", 0.75), ("random", 0.75)]
        result = events[-1].result
        assert result.rival.settings == Random(0.75, 3).settings()
        assert result.byte_bound == result.rival.byte_bound

    def test_over_time_before_there_is_anything_to_conclude_from_it_is_given_up(self) -> None:
        events = run(RunRequest("hello", GRIFFIN(), max_new_tokens=50), Limits(seconds_per_run=0))
        assert TimedOut(0) in events and not any(isinstance(event, PromptRead | Finished) for event in events)

    def test_over_time_it_concludes_from_what_it_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr("tda_demo.ui.job.time", SimpleNamespace(monotonic=lambda: now[0]))
        ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
        events = []
        for event in race_job(RunRequest("hello", GRIFFIN(), max_new_tokens=50), Limits(seconds_per_run=30))(
            Models(2), ticket=ticket
        ):
            events.append(event)
            now[0] += 10 * isinstance(event, Stepped)  # whatever came before may have taken as long as it liked
        assert TimedOut(30) in ticket.drain(0.01)
        assert isinstance(events[-1], Finished) and events[-1].result.dense.ended == "stopped"

    def test_a_prompt_of_too_many_tokens_is_refused_before_it_is_read(self) -> None:
        with pytest.raises(UserError, match="at most 8: shorten it"):
            run(RunRequest("hello " * 20, GRIFFIN(), most_prompt_tokens=8))

    def test_withdrawn_while_the_prompt_is_read_it_ends_within_a_layer(self, lm: LoadedModel) -> None:
        ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
        ran: list[int] = []

        def leave(layer: int) -> None:
            ran.append(layer)
            ticket.withdrawn.set()

        events = race_job(RunRequest("hello", GRIFFIN()), LIMITS)(Models(2), ticket=ticket)
        assert isinstance(next(events), Ready)
        with ExitStack() as hooks:
            for block in lm.blocks:
                hook = block.down.register_forward_hook(lambda *_, layer=block.layer: leave(layer))
                hooks.callback(hook.remove)
            assert list(events) == [] and ran == [0]

    def test_a_run_given_up_while_loading_ends_quietly(self) -> None:
        assert run(RunRequest("hello", GRIFFIN()), stopped=True) == []

    def test_what_does_not_fit_the_model_is_said(self) -> None:
        with pytest.raises(UserError, match="layer"):
            run(RunRequest("hello", plain_tda(online=True, exempt=(99,))))
        with pytest.raises(UserError, match="broken"):
            run(RunRequest("hello", model="broken"))


def test_a_model_is_loaded_once(loads: list[Any], lm: LoadedModel) -> None:
    kept = Models(2)
    assert kept.get(None, None) is lm and kept.get(None, None) is lm and kept.get(None, lm.precision) is lm
    assert loads == [(None, None)]


def test_the_model_used_longest_ago_makes_room(loads: list[Any]) -> None:
    kept = Models(2)
    for name in ("a", "b", "a", "c", "a", "b"):
        kept.get(name, "float32")
    assert [name for name, _ in loads] == ["a", "b", "c", "b"]


def test_the_page_learns_how_the_default_model_comes_along(loads: list[Any], lm: LoadedModel) -> None:
    kept = Models(2)
    assert kept.state.progress is not None and not kept.state.settled
    kept.preload()
    assert kept.state.settled and kept.state.layers == len(lm.blocks) and "torch" in kept.state.environment


@pytest.mark.parametrize(
    ("error", "said"), [(UserError("Do this."), "Do this."), (ValueError("secret"), "server's log")]
)
def test_a_default_model_that_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def load_model(*_: Any, **__: Any) -> LoadedModel:
        raise error

    monkeypatch.setattr(models, "load_model", load_model)
    kept = Models(2)
    kept.preload()
    assert kept.state.settled and said in kept.state.failure and "secret" not in kept.state.failure
