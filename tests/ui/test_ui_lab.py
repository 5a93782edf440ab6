"""The lab: from what a visitor asked to what the page draws, on a tiny model."""

from __future__ import annotations

import csv
import io
import json
import queue
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
from browser import ROOT
from tiny import tiny

from tda_demo.model.loading import LoadedModel
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress
from tda_demo.theory import EXPERIMENTS, Experiment, Inertia, RootCause, Training, Uncertainty
from tda_demo.theory.findings import Finding
from tda_demo.ui.job import Measuring, TimedOut
from tda_demo.ui.lab.figures import PLOTS
from tda_demo.ui.lab.figures.chart import COLOURS, value
from tda_demo.ui.lab.runs import (
    Found,
    LabFrame,
    LabRequest,
    LabView,
    PointMeasured,
    finding_value,
    lab_job,
    parse_experiment,
)
from tda_demo.ui.requests import LIMITS, Offers
from tda_demo.ui.worker import Closed, Failed, Loading, Ticket, Waiting

TEXT = " ".join(f"w{3 + (start * 5 + step * (start + 2)) % 90}" for start in range(6) for step in range(20))
SMALL: dict[str, Experiment] = {
    "root-cause": RootCause(passages=4, tokens=8, twin_layers=1),
    "uncertainty": Uncertainty(sentences=4, history=5, keep=0.4, predictor_layers=2),
    "inertia": Inertia(sequences=8, length=12, prompts=4, tokens=4),
    "training": Training(steps=1),
}
pytestmark = pytest.mark.usefixtures("little_text")  # inertia measures a prior on it


class OneModel:
    """A loader that always gives the same model, and tells of it once."""

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm

    def get(self, name: str | None, precision: str | None, report: Any) -> LoadedModel:
        report(Progress("Loading", 1, 2, "B"))
        return self.lm


def ticket() -> Ticket:
    def nothing(_: Ticket) -> Generator[Any]:
        yield from ()

    return Ticket("a", nothing)


def stopped_at_once() -> Ticket:
    """A visitor who presses Stop as soon as something is measured."""
    own = ticket()

    class Events(queue.SimpleQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put(item, block, timeout)
            if isinstance(item, Measuring):
                own.stop.set()

    own.events = Events()
    return own


def run(name: str, lm: LoadedModel, text: str = "", own: Ticket | None = None, seconds: float = 300) -> list[Any]:
    """All events of an experiment, in order."""
    own = own or ticket()
    request = LabRequest(SMALL[name], text)
    last = list(lab_job(request, seconds)(OneModel(lm), ticket=own))  # type: ignore[arg-type]
    return own.drain(0.01) + last


@pytest.fixture(scope="module")
def ran() -> dict[str, list[Any]]:
    """The events of every experiment, on the tiny model."""
    text = {"root-cause": TEXT, "inertia": TEXT}
    return {name: run(name, tiny(), text.get(name, "")) for name in EXPERIMENTS}


@pytest.fixture(scope="module")
def findings(ran: dict[str, list[Any]]) -> dict[str, Finding]:
    return {name: events[-1].finding for name, events in ran.items()}


def wishes(experiment: type[Experiment], **own: Any) -> dict[str, Any]:
    return {"sizes": experiment.defaults() | own}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda experiment: experiment.name)
def test_the_defaults_are_the_experiments_own_and_allowed(experiment: type[Experiment]) -> None:
    request = parse_experiment(experiment, Offers(), LIMITS, **wishes(experiment))
    assert request == LabRequest(experiment())


@pytest.mark.parametrize(
    ("name", "own", "says"),
    [
        ("root-cause", {"passages": 3}, "Passages: a whole number from 4 to 32"),
        ("root-cause", {"passages": 4.5}, "Passages: a whole number"),
        ("root-cause", {"tokens": None}, "Tokens of each: a whole number from 8 to 192"),
        ("inertia", {"keep": float("nan")}, "Share counted as active: a number from 0.05 to 0.95"),
        ("inertia", {"sequences": 9}, "even number"),
        ("inertia", {"tokens": 10**9}, "from 1 to 512"),
        ("training", {"steps": "many"}, "from 5 to 600"),
        ("training", {"seed": -1}, "Seed: a whole number"),
    ],
)
def test_a_size_out_of_range_is_refused_in_a_sentence(name: str, own: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_experiment(EXPERIMENTS[name], Offers(), LIMITS, **wishes(EXPERIMENTS[name], **own))


def test_text_and_model_are_taken_where_they_make_sense() -> None:
    def asked(name: str, **own: Any) -> LabRequest:
        return parse_experiment(EXPERIMENTS[name], Offers(), LIMITS, **wishes(EXPERIMENTS[name]), **own)

    assert asked("inertia", text="  mine \ud800 ").text == "mine ?"
    assert asked("uncertainty", text="mine").text == "" and asked("training", model="no/such").model is None
    with pytest.raises(UserError, match="at most 8,000"):
        asked("root-cause", text="long " * 2000)
    with pytest.raises(UserError, match="does not offer"):
        asked("root-cause", model="no/such")


def test_a_run_loads_measures_and_finds(ran: dict[str, list[Any]]) -> None:
    events = ran["root-cause"]
    assert isinstance(events[0], Loading) and isinstance(events[-1], Found) and TimedOut(300) not in events
    told = [event.progress for event in events if isinstance(event, Measuring)]
    assert told[0].done == 0 and told[-1].done == told[-1].total
    assert "4 pieces" in events[-1].finding.notes[0]


def test_the_training_run_tells_its_curve_without_a_model(ran: dict[str, list[Any]]) -> None:
    assert not any(isinstance(event, Loading) for event in ran["training"])
    points = [event.point for event in ran["training"] if isinstance(event, PointMeasured)]
    assert [(point.function, point.step) for point in points] == 4 * [(f, s) for f in ("relu", "silu") for s in (0, 1)]


@pytest.mark.parametrize("name", ["root-cause", "uncertainty", "inertia"])
def test_stop_ends_it_and_leaves_the_model_unpatched(name: str, lm: LoadedModel) -> None:
    own = stopped_at_once()
    events = run(name, lm, TEXT, own)
    assert not events[-1].finding.complete and sum(isinstance(event, Measuring) for event in events) < 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_over_time_it_concludes_from_what_it_has(lm: LoadedModel) -> None:
    events = run("root-cause", lm, TEXT, seconds=0)
    assert events.count(TimedOut(0)) == 1 and not events[-1].finding.complete


def test_what_does_not_fit_is_said(lm: LoadedModel) -> None:
    with pytest.raises(UserError, match="Your text has 1 tokens"):
        run("root-cause", lm, "w3")


def test_the_view_follows_a_run(findings: dict[str, Finding]) -> None:
    view = LabView()
    view.apply(Waiting(1))
    assert view.phase == "queued" and "2nd in line" in view.message
    view.apply(Waiting(0))
    view.apply(Measuring(Progress("x", 25, 100, "passes"), 10.0))
    assert (view.phase, view.progress) == ("running", 0.25)
    assert view.message == "Measuring: 25 of 100 passes, about 30 s left."
    view.apply(Found(findings["training"]))
    view.apply(Closed())
    assert view.phase == "finished" and view.over


@pytest.mark.parametrize(
    ("own", "timed_out", "says"),
    [
        ({}, True, "time this page gives"),
        ({}, False, "what had been measured"),
        ({"checks": ()}, False, "before enough"),
    ],
)
def test_a_stopped_run_says_what_is_left_of_it(
    findings: dict[str, Finding], own: dict[str, Any], timed_out: bool, says: str
) -> None:
    view = LabView()
    if timed_out:
        view.apply(TimedOut(300))
    view.apply(Found(replace(findings["training"], complete=False, **own)))
    assert view.phase == "stopped" and says in view.message


def test_failures_and_runs_that_never_began() -> None:
    failed, closed = LabView(), LabView()
    failed.apply(Failed("Do this."))
    closed.apply(Closed())
    assert (failed.phase, failed.message) == ("failed", "Do this.")
    assert closed.phase == "stopped"


def test_time_left_is_not_guessed_too_early() -> None:
    measuring = LabView().measuring
    assert measuring(Progress("x", 1, 100, "steps"), 5) == "Measuring: 1 of 100 steps."
    assert measuring(Progress("x", 10, 100, "steps"), 60).endswith("about 9 min left.")
    assert measuring(Progress("x", 100, 100, "steps"), 60).endswith("about 1 s left.")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_plot_has_its_views_and_stays_small(name: str, findings: dict[str, Finding]) -> None:
    tables = {table.name: table.columns for table in findings[name].tables}
    for plot in PLOTS[name]:
        drawn = value(plot.draw(tables))
        assert drawn is not None and tuple(drawn["views"]) == (plot.views or ("",))
        assert all(view["data"] for view in drawn["views"].values())
        for view, figure in drawn["views"].items():
            for trace in figure["data"]:
                if trace["type"] == "scatter" and trace.get("name"):
                    assert len(trace["y"]) == len(drawn["hover"]["x"][view]) and trace["line"]["color"] in COLOURS
        assert len(json.dumps(drawn)) < 100_000


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_stopped_at_once_draws_nothing(name: str, lm: LoadedModel) -> None:
    own = stopped_at_once()
    finding = run(name, lm, TEXT, own)[-1].finding
    finding = replace(finding, checks=())
    tables = {table.name: table.columns for table in finding.tables}
    for plot in PLOTS[name]:
        value(plot.draw(tables))  # must not fail on tables without rows
    assert finding_value(finding) is None


def test_lines_are_the_tables_numbers(findings: dict[str, Finding]) -> None:
    tables = {table.name: table.columns for table in findings["inertia"].tables}
    drawn = value(PLOTS["inertia"][0].draw(tables))
    assert drawn is not None
    line = next(trace for trace in drawn["views"]["random"]["data"] if trace.get("name") == "same token")
    rows = [
        row
        for row, (tokens, shared) in enumerate(zip(tables["swap"]["tokens"], tables["swap"]["shared"], strict=True))
        if (tokens, shared) == ("random", "same token")
    ]
    assert line["y"] == pytest.approx([tables["swap"]["Jaccard"][row] for row in rows], rel=1e-3)
    assert line["customdata"][0] == pytest.approx(
        [tables["swap"][f"Jaccard {end}"][rows[0]] for end in ("low", "high")], rel=1e-3, abs=1e-9
    )


def test_what_was_not_measured_is_said_in_its_view(findings: dict[str, Finding]) -> None:
    tables = {table.name: table.columns for table in findings["root-cause"].tables}
    loaded = [row for row, name in enumerate(tables["layers"]["model"]) if "loaded" in name]
    tables["layers"] = {name: [column[row] for row in loaded] for name, column in tables["layers"].items()}
    drawn = value(PLOTS["root-cause"][0].draw(tables))
    assert drawn is not None and drawn["views"]["mean"]["data"] and not drawn["views"]["untrained"]["data"]
    assert drawn["views"]["untrained"]["layout"]["annotations"][0]["text"] == "not measured in this run"


def test_a_frame_sends_the_plots_once_and_the_curve_as_it_grows(ran: dict[str, list[Any]]) -> None:
    view = LabView()
    frame = LabFrame(view, "training")
    assert set(frame.outputs()) == {"notice"}
    *before, found = ran["training"]
    for event in before:
        view.apply(event)
    assert set(frame.outputs()) == {"notice", "loss", "sparsity"} and set(frame.outputs()) == set()
    view.apply(found)
    assert set(frame.outputs()) == {"notice", "finding"}  # its plots are those of the whole curve, already sent


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_files_hold_the_finding(name: str, findings: dict[str, Finding]) -> None:
    hostile = replace(findings[name], model="</script><img src=x onerror=alert(1)>")
    drawn = finding_value(hostile)
    assert drawn is not None
    files = {file["name"]: file["text"] for file in drawn["files"]}
    assert json.loads(files[f"theory-{name}.json"]) == json.loads(json.dumps(hostile.to_json()))
    for table in hostile.tables:
        header, *rows = csv.reader(io.StringIO(files[f"theory-{name}-{table.name.replace(' ', '-')}.csv"]))
        assert header == list(table.columns) and len(rows) == len(table.columns[header[0]])
    report = files[f"theory-{name}.html"]
    assert "<img" not in report and "src=" not in report.replace("src=x", "") and hostile.checks[0].outcome in report
    for check, row in zip(hostile.checks, drawn["checks"], strict=True):
        assert sum(row["counts"].values()) == len(check.estimates) and row["told"] in check.verdict


def test_the_claims_are_shown_before_torch_is_in_memory() -> None:
    code = "import sys, tda_demo.ui.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
