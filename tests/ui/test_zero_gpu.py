"""Jobs on a GPU that is lent for one call: what goes into another process, and what comes back."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_spaces import FakeSpaces
from gradio.context import LocalContext

from tda_demo.methods import GRIFFIN
from tda_demo.methods.plan import ActiveSets
from tda_demo.model.loading import LoadedModel
from tda_demo.model.weights import WeightFolder
from tda_demo.race import Finished, PromptRead
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress
from tda_demo.theory import EXPERIMENTS
from tda_demo.ui import zero_gpu
from tda_demo.ui.job import PageJob
from tda_demo.ui.lab.runs import lab_job, parse_experiment
from tda_demo.ui.models import Models
from tda_demo.ui.pareto.runs import parse_sweep, sweep_job
from tda_demo.ui.race.runs import race_job
from tda_demo.ui.requests import LIMITS, Offers, RunRequest, parse_request
from tda_demo.ui.service import Service
from tda_demo.ui.worker import Closed, Failed, Loading, Ticket, reporter
from tda_demo.ui.zero_gpu import GpuNeed, Job


@dataclass(frozen=True)
class Told:
    what: Any


def tells(models: Models, *, ticket: Ticket, said: str) -> Generator[Any]:
    reporter(ticket)(Progress("Loading", 1, 2, "B"))
    yield Told((said, os.getpid(), type(models) is Models))


def fails(models: Models, *, ticket: Ticket) -> Generator[Any]:
    yield Told("begun")
    raise UserError("Do this instead.")


def until_stopped(models: Models, *, ticket: Ticket, at_the_end: Path) -> Generator[Any]:
    try:
        yield Told("running")
        assert ticket.stop.wait(20)
        yield Told("judged")
    finally:
        at_the_end.touch()


def unpicklable(models: Models, *, ticket: Ticket) -> Generator[Any]:
    yield lambda: None


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> FakeSpaces:
    """A Space with ZeroGPU, its weights already there."""
    fake = FakeSpaces()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", fake)
    monkeypatch.setattr("tda_demo.model.weights.find_weights", lambda *_: WeightFolder("tiny", "0", Path()))
    return fake


def next_of(ticket: Ticket, kind: type) -> Any:
    """The next event of that ``kind``."""
    while not isinstance(event := ticket.events.get(timeout=20), kind):
        assert not isinstance(event, Closed | Failed), event
    return event


def everything(service: Service, job: Job, seconds: float = 60) -> list[Any]:
    ticket = service.submit("a", job, GpuNeed(None, seconds))
    assert ticket.closed.wait(30)
    return ticket.drain(0)


def test_events_and_reports_come_from_another_process(spaces: FakeSpaces) -> None:
    loading, told, closed = everything(Service(Offers()), partial(tells, said="hello"))
    assert loading == Loading(Progress("Loading", 1, 2, "B")) and isinstance(closed, Closed)
    said, process, loads = told.what
    assert said == "hello" and process != os.getpid() and loads


def test_the_visitor_s_quota_is_charged_the_seconds_of_the_request(spaces: FakeSpaces) -> None:
    service, visitor = Service(Offers()), object()
    token = LocalContext.request.set(visitor)  # type: ignore[arg-type]
    try:
        everything(service, partial(tells, said=""), 61.2)
    finally:
        LocalContext.request.reset(token)
    assert spaces.calls == [(62, visitor)]


def test_an_error_for_the_reader_comes_back_whole(spaces: FakeSpaces) -> None:
    assert everything(Service(Offers()), fails)[:2] == [Told("begun"), Failed("Do this instead.")]


@pytest.mark.parametrize("job", [partial(tells, said=""), unpicklable])
def test_a_gpu_that_is_refused_or_lost_is_said(spaces: FakeSpaces, job: Job) -> None:
    spaces.refuse = "" if job is unpicklable else "You have exceeded your quota."
    failed = everything(Service(Offers()), job)[-2]
    assert isinstance(failed, Failed) and "GPU was not to be had or was taken back" in failed.message
    assert spaces.refuse in failed.message


def test_stop_reaches_the_other_process(spaces: FakeSpaces, tmp_path: Path) -> None:
    service = Service(Offers())
    ticket = service.submit("a", partial(until_stopped, at_the_end=tmp_path / "end"), GpuNeed(None, 60))
    assert next_of(ticket, Told) == Told("running")
    service.worker.stop("a")
    assert next_of(ticket, Told) == Told("judged")


def test_a_visitor_who_leaves_gives_the_gpu_back(spaces: FakeSpaces, tmp_path: Path) -> None:
    service = Service(Offers())
    ticket = service.submit("a", partial(until_stopped, at_the_end=tmp_path / "end"), GpuNeed(None, 60))
    next_of(ticket, Told)
    service.withdraw(ticket)
    assert ticket.closed.wait(20) and (tmp_path / "end").exists()


def test_a_job_concludes_before_the_gpu_is_taken_back(spaces: FakeSpaces, tmp_path: Path) -> None:
    job = partial(until_stopped, at_the_end=tmp_path / "end")
    assert Told("judged") in everything(Service(Offers()), job, seconds=zero_gpu._CONCLUDING_SECONDS)


def test_elsewhere_a_job_runs_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setitem(sys.modules, "spaces", None)  # not installed
    told = everything(Service(Offers()), partial(tells, said="hello"))[1]
    assert told.what[:2] == ("hello", os.getpid())


def test_what_needs_no_model_runs_in_place(spaces: FakeSpaces) -> None:
    ticket = Service(Offers()).submit("a", partial(tells, said="hello"), None)
    assert next_of(ticket, Told).what[1] == os.getpid() and spaces.calls == []


@pytest.mark.parametrize("where", ["race", "pareto", *EXPERIMENTS])
def test_every_tab_s_job_can_travel(where: str) -> None:
    job: PageJob[Any]
    if where == "race":
        wishes = {"prompt": "hello", "settings": {"cett": 0.3}, "by": "quality"}
        job = race_job(parse_request(Offers(), **wishes), LIMITS)
    elif where == "pareto":
        given = {"method": "tda", "values": "0.1, 0.2", "passages": 3, "model": None, "precision": None}
        job = sweep_job(parse_sweep(Offers(), **given))
    else:
        experiment = EXPERIMENTS[where]
        job = lab_job(parse_experiment(experiment, Offers(), LIMITS, sizes=experiment.defaults()))
    need = job.need
    assert pickle.loads(pickle.dumps(job)) == job
    assert (need is None) == (where == "training") and (need is None or need.seconds > 30)


def test_a_race_s_events_survive_the_way(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service, models = Service(Offers()), Models(1)
    monkeypatch.setattr(models, "get", lambda *_: lm)
    job = race_job(RunRequest("hello", GRIFFIN(), max_new_tokens=3), service.limits)
    events = list(job(models, ticket=Ticket("a", lambda _: iter(()))))  # type: ignore[arg-type, return-value]
    back = pickle.loads(zero_gpu._pickle_events(events))
    assert [type(event) for event in back] == [type(event) for event in events]
    read, read_back = (next(each for each in told if isinstance(each, PromptRead)) for told in (events, back))
    assert isinstance(read_back.active, ActiveSets) and read.active is not None
    assert all(map(torch.equal, read_back.active.indices, read.active.indices))
    assert isinstance(back[-1], Finished) and back[-1].result.to_json() == events[-1].result.to_json()


def test_there_the_default_model_is_fetched_not_loaded(spaces: FakeSpaces, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, LlamaConfig

    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: LlamaConfig(num_hidden_layers=7))
    monkeypatch.setattr("tda_demo.model.precision.choose_precision", lambda *_: "bfloat16")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a GPU that is lent")
    service = Service(Offers.here(allow_any_model=False))
    service.preload()
    deadline = time.monotonic() + 20
    while not service.models.state.settled and time.monotonic() < deadline:
        time.sleep(0.01)
    state = service.models.state
    assert (state.layers, state.environment["gpu"], state.failure) == (7, "a GPU that is lent", "")
    assert service.offers.device == "cuda"
