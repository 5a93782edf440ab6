"""The Pareto tab without its browser: points, the frontier, the plot, a sweep's request and its story."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.evaluate.sweep_table import SweepRow
from tda_demo.methods import GRIFFIN, METHODS, TDA
from tda_demo.race import Finished, PromptRead, RaceSettings, Stepped, race
from tda_demo.race.result import MethodResult
from tda_demo.report.race import RaceRecord, trace_of
from tda_demo.stats import metrics
from tda_demo.support.errors import UserError
from tda_demo.support.files import ASSETS
from tda_demo.support.progress import Progress
from tda_demo.ui.job import Measuring, TimedOut
from tda_demo.ui.models import Models
from tda_demo.ui.pareto import figures, runs
from tda_demo.ui.pareto.points import RACE, SHIPPED, VISITOR, point, points, race_points, shipped_rows
from tda_demo.ui.pareto.runs import RowMeasured, SweepFrame, SweepRequest, SweepView, keep_rows, parse_sweep, sweep_job
from tda_demo.ui.pareto.tab import first_values
from tda_demo.ui.requests import Offers
from tda_demo.ui.visits import Visit, Visits
from tda_demo.ui.worker import Closed, Failed, Loading, Ticket, Waiting


def fields(**own: Any) -> dict[str, Any]:
    numbers = dict.fromkeys(SweepRow.__annotations__, 1.0)
    names = ("model", "text", "tokens_sha256", "machine", "torch", "date")
    texts = {**{name: name for name in names}, "settings": '{"keep": 0.5}'}
    return {**numbers, **texts, "method": "griffin", "precision": "int8", "scored_tokens": 9, "prompt_tokens": 5, **own}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_the_frontier_is_what_nothing_beats(places: list[tuple[int, int]]) -> None:
    best = metrics.frontier([x for x, _ in places], [y for _, y in places])

    def beaten(index: int) -> bool:
        x, y = places[index]
        return any(p <= x and q <= y and (p, q) != (x, y) for p, q in places)

    assert {places[index] for index in best} == {place for at, place in enumerate(places) if not beaten(at)}
    assert len(best) == len({places[index] for index in best})
    assert [places[index][0] for index in best] == sorted(places[index][0] for index in best)


def test_shipped_points_have_every_field_and_every_precision_of_dense() -> None:
    rows = shipped_rows()
    later = {"kl_low", "kl_high"}  # which a sweep of an earlier version is without
    assert all(set(SweepRow.__annotations__) - later <= set(row) <= set(SweepRow.__annotations__) for row in rows)
    dense = {row["precision"] for row in rows if row["method"] == "dense"}
    assert dense == {"float32", "bfloat16", "int8", "q4", "nf4"}
    assert {row["method"] for row in rows} == {"dense", *METHODS}
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in rows)
    identities = [(row["method"], row["settings"], row["precision"]) for row in rows]
    assert len(set(identities)) == len(identities) and len({row["tokens_sha256"] for row in rows}) == 1


def test_every_pair_of_axes_has_the_points_it_can_show() -> None:
    told = [
        point(SHIPPED, fields(kl=0.1, step_bytes=3e6, tokens_sha256="a")),
        point(SHIPPED, fields(kl=0.3, step_bytes=1e6, tokens_sha256="a", tokens_per_second=None)),
        point(SHIPPED, fields(kl=0.2, step_bytes=4e6, tokens_sha256="a", perplexity=float("inf"))),
        point(VISITOR, fields(kl=0.4, step_bytes=2e6, tokens_sha256="b", method="new", precision="int3")),
    ]
    value = figures.plot_value(told)
    assert value is not None and len(value["views"]) == 9
    json.dumps(value, allow_nan=False)

    def shown(view: str) -> dict[int, tuple[float, float]]:
        traces = [trace for trace in value["views"][view]["data"] if "customdata" in trace]
        return {
            index: (x, y)
            for trace in traces
            for index, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
        }

    assert shown("kl/bytes") == {0: (3, 0.1), 1: (1, 0.3), 2: (4, 0.2), 3: (2, 0.4)}
    assert set(shown("kl/rate")) == {0, 2, 3} and set(shown("perplexity/bytes")) == {0, 1, 3}
    (band,) = [trace for trace in value["views"]["kl/bytes"]["data"] if "customdata" not in trace]
    assert (band["x"], band["y"]) == ([1, 3], [0.3, 0.1])
    assert [entry["key"] for entry in value["legend"]["method"]] == ["griffin", "new"]
    assert any("keep 0.5" in line for line in value["tips"][0]) and "no times were taken" in value["tips"][1]
    assert len(value["table"]["body"]) == len(value["rows"]) == 4
    assert figures.plot_value([]) is None


def test_a_line_joins_points_that_differ_in_the_dial_alone() -> None:
    paper, rest = ({"shape": "uniform", "rest": "skip"}, {"shape": "sensitivity", "rest": "4bit"})
    settings = [{"cett": cett, **paper} for cett in (0.1, 0.2)] + [{"cett": 0.7, **rest}]
    told = [
        point(SHIPPED, fields(method="tda", settings=json.dumps(each), step_bytes=(3 - at) * 1e6))
        for at, each in enumerate(settings)
    ]
    value = figures.plot_value(told)
    assert value is not None
    traces = [trace for trace in value["views"]["kl/bytes"]["data"] if "customdata" in trace]
    assert sorted(sorted(trace["customdata"]) for trace in traces) == [[0, 1], [2]]
    assert {trace["meta"]["method"] for trace in traces} == {"tda"}


def test_every_method_has_a_colour_of_its_own_in_both_themes() -> None:
    told = [point(SHIPPED, fields(method=method)) for method in ("dense", *METHODS)]
    value = figures.plot_value(told[::-1])
    assert value is not None
    entries = value["legend"]["method"]
    assert [entry["key"] for entry in entries] == ["dense", *METHODS]
    assert [entry["label"] for entry in entries[1:]] == [method.__name__ for method in METHODS.values()]
    styles = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "pareto.css"))
    by_theme = []
    for entry in entries:
        name = entry["colour"].removeprefix("var(").removesuffix(")")
        by_theme.append(re.findall(rf"{name}: (#[0-9a-f]{{6}});", styles))
    for theme in zip(*by_theme, strict=True):
        assert len(set(theme)) == len(entries)


def test_the_last_race_is_a_point(lm: Any) -> None:
    events = list(race(lm, METHODS["griffin"](), "w5 w6 w7 w8", RaceSettings(max_new_tokens=8)))
    read = next(event for event in events if isinstance(event, PromptRead))
    steps = [event for event in events if isinstance(event, Stepped) and event.fired is not None]
    finished = events[-1]
    assert isinstance(finished, Finished)
    widths = [block.d_ff for block in lm.blocks]
    trace = trace_of(
        read, widths, [step.text for step in steps], [step.fired for step in steps if step.fired is not None]
    )
    record = RaceRecord("prompt", {}, finished.result, trace, metrics.mlp_share(trace.kept, widths))
    (found,) = race_points(record)
    assert found.source == RACE and found.rise is None
    assert found.share == pytest.approx(1 - np.mean(finished.result.sparsity))
    assert found.kl == finished.result.quality.kl
    assert set(SweepRow.__annotations__) - set(found.fields) == {"cett", "recall", "kl_low", "kl_high"}
    assert points([], record)[-1] == found
    json.dumps([figures.plot_value([found]), record.to_json()], allow_nan=False)
    other = MethodResult(
        "tda", {"cett": 0.3}, finished.result.sparse, None, 1.5, None, [0.5], finished.result.quality, ""
    )
    duel = dataclasses.replace(record, result=dataclasses.replace(finished.result, rival=other), rival_mlp_share=0.4)
    both = race_points(duel)
    assert both[0] == found and (both[1].method, both[1].share, both[1].settings) == ("tda", 0.4, {"cett": 0.3})
    too_short = dataclasses.replace(other, quality=None)
    assert race_points(dataclasses.replace(duel, result=dataclasses.replace(finished.result, rival=too_short))) == [
        found
    ]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"values": ""}, "write 1 to 6"),
        ({"values": "1 2 3 4 5 6 7"}, "write 1 to 6"),
        ({"values": "a, b"}, "write numbers"),
        ({"passages": 99}, "from 2 to 12"),
        ({"passages": None}, "from 2 to 12"),
        ({"model": "/etc"}, "does not offer that model"),
        ({"method": "magic"}, "does not offer that method"),
        ({"method": None}, "does not offer that method"),
        ({"method": "griffin", "values": "7"}, "keep is 7"),
    ],
)
def test_a_wish_out_of_bounds_is_refused_in_a_sentence(wish: dict[str, Any], says: str) -> None:
    standard = {"method": "tda", "values": "0.1, .2 0.2", "passages": 4, "model": None, "precision": None}
    assert parse_sweep(Offers(), **standard).methods == (TDA(cett=0.1), TDA(cett=0.2))
    with pytest.raises(UserError, match=says):
        parse_sweep(Offers(), **{**standard, **wish})


@pytest.mark.parametrize("method", METHODS.values())
def test_values_to_begin_with_are_within_the_dial(method: Any) -> None:
    for value in first_values(method.dial):
        method(**{method.dial.setting: value})


class Planted(Models):
    def __init__(self, lm: Any) -> None:
        super().__init__(2)
        self.lm = lm

    def get(self, *_: Any, **__: Any) -> Any:
        return self.lm


@pytest.fixture
def models(lm: Any, monkeypatch: pytest.MonkeyPatch) -> Planted:
    from tda_demo.calibration import documents

    words = " ".join(f"w{word}" for word in np.random.default_rng(0).integers(5, 90, 40))
    monkeypatch.setattr(documents, "project_passages", lambda **_: [documents.Document(words, at) for at in range(3)])
    monkeypatch.setattr(runs, "PROMPT_TOKENS", 20)
    monkeypatch.setattr(runs, "SCORE_TOKENS", 9)
    return Planted(lm)


def story(models: Models, request: SweepRequest, seconds: float = 600, stop_after: int | None = None) -> SweepView:
    """A sweep as the page sees it, stopped once so many rows are there."""
    ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
    view = SweepView(1 + len(request.methods))
    for event in sweep_job(request, seconds)(models, ticket=ticket):
        for told in [*ticket.drain(0), event]:
            view.apply(told)
        if len(view.rows) == stop_after:
            ticket.stop.set()
    for event in [*ticket.drain(0), Closed()]:
        view.apply(event)
    return view


def test_a_sweep_gives_its_rows_one_by_one(models: Planted) -> None:
    view = story(models, SweepRequest((GRIFFIN(keep=0.9), GRIFFIN(keep=0.5)), 3))
    assert view.phase == "finished" and "3 points" in view.message
    assert [(row["method"], row["documents"]) for row in view.rows] == [("dense", 3), ("griffin", 3), ("griffin", 3)]
    assert view.rows[0]["kl"] == 0 < view.rows[1]["kl"] and all(row["speedup_n"] for row in view.rows)


def test_a_sweep_that_is_stopped_keeps_what_it_has(models: Planted) -> None:
    view = story(models, SweepRequest((GRIFFIN(keep=0.9), GRIFFIN(keep=0.5)), 3), stop_after=1)
    assert view.phase == "stopped" and "1 point of 3" in view.message and len(view.rows) == 1
    view = story(models, SweepRequest((GRIFFIN(keep=0.9), GRIFFIN(keep=0.5)), 3), seconds=-1)
    assert view.phase == "stopped" and "the most this page gives" in view.message and view.rows == []


def test_a_view_says_where_it_stands() -> None:
    view = SweepView(3)
    view.apply(Waiting(1))
    assert view.phase == "queued" and "2nd in line" in view.message
    view.apply(Loading(Progress("Converting", 1, 4, "layers")))
    assert (view.phase, view.progress) == ("loading", 0.25)
    view.apply(RowMeasured(fields()))
    view.apply(Measuring(Progress("Sweeping", 10, 40, "steps"), 20.0))
    assert view.progress == 0.25 and "1 of 3 points, about 60 s left" in view.message.replace(
        "about 1 min", "about 60 s"
    )
    view.apply(Failed("Do this."))
    view.apply(Closed())
    assert (view.phase, view.message) == ("failed", "Do this.")
    timed_out = SweepView(3)
    timed_out.apply(TimedOut(180.0))
    assert "180 s" in timed_out.message
    timed_out.apply(Closed())
    assert timed_out.over and "180 s" in timed_out.message


def test_a_point_measured_again_takes_the_older_one_s_place() -> None:
    rows = [fields(kl=1.0), fields(kl=2.0, precision="nf4")]
    keep_rows(rows, [fields(kl=3.0)])
    assert [row["kl"] for row in rows] == [2.0, 3.0]


def test_a_new_row_joins_the_visit_and_is_plotted_once() -> None:
    frame, visit = SweepFrame(SweepView(2)), Visit()
    frame.remember(visit)
    assert set(frame.outputs()) == {"notice"} and visit.rows == []
    frame.view.apply(RowMeasured(fields()))
    frame.remember(visit)
    assert set(frame.outputs()) == {"plot"} and visit.rows == [fields()]
    frame.remember(visit)
    assert frame.outputs() == {}


def test_a_visit_is_forgotten_when_it_ends_and_the_oldest_when_there_are_many() -> None:
    visits = Visits()
    visits.of("a").rows.append(fields())
    assert visits.of("a").rows and not visits.of("b").rows
    visits.forget("a")
    visits.forget("nobody")
    assert visits.of("a") == Visit()
    visits.of("b").rows.append(fields())
    for number in range(100):
        visits.of(str(number))
    assert visits.of("b") == Visit()


def test_a_table_of_a_sweep_reads_back(tmp_path: Any) -> None:
    from tda_demo.evaluate.sweep_table import write_table
    from tda_demo.ui.pareto.points import _typed

    row = SweepRow(**{**fields(), "tokens_per_second": None, "text": 'a "b", c', "speedup_n": 18})
    write_table([row], tmp_path / "a.csv")
    (told,) = csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8", newline=""))
    assert {name: _typed(name, text) for name, text in told.items()} == vars(row)
