"""The pipeline every tab uses, with a job that only counts: from the request to what the page is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tda_demo.support.errors import UserError
from tda_demo.support.interruption import GivenUp
from tda_demo.support.progress import Progress
from tda_demo.ui import job as pipeline
from tda_demo.ui.job import (
    CONCLUDING_SECONDS,
    IDLE,
    RUNNING,
    Clock,
    Frame,
    JobAndFrame,
    JobView,
    Measuring,
    PageJob,
    TimedOut,
    follow_job,
    stream,
)
from tda_demo.ui.models import Models, ModelState
from tda_demo.ui.requests import Offers
from tda_demo.ui.service import Service
from tda_demo.ui.visits import Visit
from tda_demo.ui.widgets import Courier
from tda_demo.ui.worker import Closed, Failed, Ticket, Waiting

Outputs = dict[str, Any]


def count(_: Models, to: int, clock: Clock) -> Generator[int]:
    """Loads, then yields a number a step until it is stopped; a negative one is not to be had."""
    clock.load(Progress("Loading", 1, 2, "B"))
    if to < 0:
        raise UserError("It is below zero.")
    for number in range(to):
        clock.measure(Progress("Counting", number, to, "numbers"))
        if clock.stop.is_set():
            return
        yield number
        time.sleep(0.02)


def counting(to: int, seconds: float = 60) -> PageJob[int]:
    return PageJob(count, to, seconds, None)


@dataclass
class CountView(JobView):
    to: int
    numbers: list[int] = field(default_factory=list)

    def receive(self, event: Any) -> None:
        if isinstance(event, int):
            self.numbers.append(event)

    def close(self) -> None:
        done = len(self.numbers) == self.to
        self.say("finished", "Finished.") if done else super().close()


class CountFrame(Frame[CountView]):
    def draw(self) -> Outputs:
        return {"numbers": list(self.view.numbers), "never": None}

    def remember(self, visit: Visit) -> None:
        visit.rows[:] = [{"number": number} for number in self.view.numbers]


@pytest.fixture
def service() -> Service:
    service = Service(Offers())
    service.models.state = ModelState(layers=2)
    return service


def outputs(service: Service, job: PageJob[int], owner: str = "a") -> Generator[Outputs]:
    return stream(service, owner, lambda: (job, CountFrame(CountView(job.request))))


def held(service: Service) -> Ticket:
    """A job that keeps the worker until it is stopped."""

    def job(ticket: Ticket) -> Generator[str]:
        yield "running"
        ticket.stop.wait(20)

    ticket = service.worker.submit("other", job)
    assert ticket.events.get(timeout=5) == "running"
    return ticket


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def notices(frames: list[Outputs]) -> list[str]:
    return [frame["notice"]["text"] for frame in frames if "notice" in frame]


def test_a_job_is_shown_from_its_first_event_to_its_last(service: Service) -> None:
    frames = list(outputs(service, counting(30)))
    assert frames[0] == RUNNING and frames[-1] == IDLE
    assert notices(frames)[-1] == "Finished." and any("Counting" in notice for notice in notices(frames))
    assert [frame["numbers"] for frame in frames if "numbers" in frame][-1] == list(range(30))
    assert service.visits.of("a").rows == [{"number": number} for number in range(30)]


def test_only_what_changed_is_sent() -> None:
    frame = CountFrame(CountView(2))
    assert set(frame.outputs()) == {"notice", "numbers", "never"} and frame.outputs() == {}
    frame.view.apply(0)
    assert frame.outputs() == {"numbers": [0]}


def test_who_waits_is_told_the_place_and_that_nothing_changed_is_heard_of(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_HEARTBEAT_SECONDS", 0.0)
    first = held(service)
    frames = outputs(service, counting(1))
    assert next(frames) == RUNNING
    assert next(frames)["notice"]["text"].startswith("You are 2nd in line: one race runs at a time")
    assert next(frames) == {}  # so that gradio notices a visitor who has left
    service.withdraw(first)
    assert notices(list(frames))[-1] == "Finished."


def test_who_is_next_is_told_how_far_the_model_is(service: Service) -> None:
    first = held(service)
    service.models.state = ModelState(Progress("Downloading m", 42_000_000, 84_000_000, "B"))
    frames = outputs(service, counting(1))
    next(frames)
    assert next(frames)["notice"] == {"text": "Downloading m: 42 of 84 MB", "tone": "quiet", "progress": 0.5}
    service.models.state = ModelState(layers=2)
    service.withdraw(first)
    assert notices(list(frames))[-1] == "Finished."


def test_nothing_is_sent_while_nothing_changes(service: Service) -> None:
    def still(_: Models, seconds: float, clock: Clock) -> Generator[None]:
        clock.stop.wait(seconds)
        yield None

    frames = list(stream(service, "a", lambda: (PageJob(still, 0.7, 60, None), Frame(JobView()))))
    assert notices(frames) == ["Getting ready…", "Stopped."] and {} not in frames


def test_stop_ends_it_and_what_there_is_stays(service: Service) -> None:
    frames = outputs(service, counting(1000))
    for frame in frames:
        if frame.get("numbers"):
            break
    begin = time.monotonic()
    service.worker.stop("a")
    assert notices(list(frames))[-1] == "Stopped." and time.monotonic() - begin < 2
    assert service.visits.of("a").rows


def test_stopped_while_it_waits_it_never_begins(service: Service) -> None:
    first = held(service)
    frames = outputs(service, counting(5))
    for _ in range(2):
        next(frames)
    service.worker.stop("a")
    rest = list(frames)
    assert notices(rest)[-1] == "Stopped." and not any(frame.get("numbers") for frame in rest)
    service.withdraw(first)


def test_stopped_while_a_model_is_loaded_it_ends_quietly() -> None:
    ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
    ticket.stop.set()
    assert list(counting(5)(Models(1), ticket=ticket)) == [] and ticket.drain(0) == []


def test_at_its_limit_it_is_stopped_and_says_so_once() -> None:
    ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
    events = list(counting(5, seconds=0)(Models(1), ticket=ticket)) + ticket.drain(0)
    assert events.count(TimedOut(0)) == 1 and ticket.stop.is_set()
    clock = Clock(Ticket("a", lambda _: iter(())), 60)  # type: ignore[arg-type, return-value]
    assert clock.tick() == 0 and clock.tick() > 0 and not clock.stop.is_set()


class Hands:
    """A clock to be turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    monkeypatch.setattr(pipeline, "time", hands := Hands())
    return hands


class TestAClock:
    def clock(self, limit: float) -> Clock:
        return Clock(Ticket("a", lambda _: iter(())), limit)  # type: ignore[arg-type, return-value]

    def test_what_a_model_takes_to_load_is_not_counted(self, hands: Hands) -> None:
        clock = self.clock(10)
        clock.load(Progress("Downloading", 0, 2, "B"))
        hands.now = 1000
        clock.load(Progress("Downloading", 2, 2, "B"))
        clock.begin()
        hands.now = 1009
        assert clock.tick() == 9 and not clock.stop.is_set()
        hands.now = 1010
        clock.tick()
        assert clock.stop.is_set()

    def test_what_is_prepared_counts_apart_and_has_a_limit_of_its_own(self, hands: Hands) -> None:
        clock = self.clock(10)
        clock.begin()
        clock.load(Progress("Training", 0, 2, "layers"))
        hands.now = 100
        clock.load(Progress("Training", 2, 2, "layers"))
        hands.now = 109
        assert clock.tick() == 9 and not clock.stop.is_set()
        clock.load(Progress("Training", 0, 2, "layers"))
        hands.now = 130
        with pytest.raises(GivenUp):
            clock.look()
        assert clock.stop.is_set()

    def test_with_something_to_conclude_from_it_has_a_little_longer(self, hands: Hands) -> None:
        clock = self.clock(10)
        clock.begin()
        clock.event()
        hands.now = 10
        clock.look()
        assert clock.stop.is_set()
        hands.now = 10 + CONCLUDING_SECONDS + 1
        with pytest.raises(GivenUp):
            clock.look()

    def test_without_it_has_not(self, hands: Hands) -> None:
        clock = self.clock(10)
        clock.begin()
        hands.now = 10
        with pytest.raises(GivenUp):
            clock.look()

    def test_nobody_who_listens_ends_it_at_the_next_look(self) -> None:
        ticket = Ticket("a", lambda _: iter(()))  # type: ignore[arg-type, return-value]
        ticket.withdrawn.set()
        with pytest.raises(GivenUp):
            Clock(ticket, 10).look()


def test_the_page_says_that_the_time_was_up(service: Service) -> None:
    assert notices(list(outputs(service, counting(1000, seconds=0.3))))[-1] == (
        "Stopped after 0.3 s, the most this page gives to one run."
    )


def test_a_failure_is_said_and_the_next_job_runs(service: Service) -> None:
    frames = list(outputs(service, counting(-1)))
    assert frames[-2]["notice"] == {"text": "It is below zero.", "tone": "error", "progress": None}
    assert frames[-1] == IDLE
    assert notices(list(outputs(service, counting(2))))[-1] == "Finished."


def test_a_request_that_is_refused_reaches_no_worker(service: Service) -> None:
    def refuse() -> JobAndFrame:
        raise UserError("Write a number.")

    (frame,) = stream(service, "a", refuse)
    assert frame == {"notice": {"text": "Write a number.", "tone": "error", "progress": None}}
    assert not service.worker.busy("a")


def test_a_full_line_is_said(service: Service) -> None:
    first = held(service)
    tickets = [service.submit("a", counting(1), None) for _ in range(service.limits.waiting_runs)]
    assert "waiting already" in notices(list(outputs(service, counting(1))))[0]
    for ticket in (*tickets, first):
        service.withdraw(ticket)


@pytest.mark.parametrize("frames", [1, 4])
def test_a_closed_tab_frees_the_model(service: Service, frames: int) -> None:
    begun = outputs(service, counting(10_000))
    for _ in range(frames):
        next(begun)
    begun.close()
    eventually(lambda: not service.worker.busy("a"))


def test_a_visitor_who_leaves_frees_the_model(service: Service) -> None:
    begun = outputs(service, counting(10_000))
    for _ in range(2):
        next(begun)
    service.worker.abandon("a")
    assert list(begun)[-1] == IDLE
    eventually(lambda: not service.worker.busy("a"))


def test_without_a_page_the_view_is_enough(service: Service) -> None:
    view = CountView(3)
    for _ in follow_job(service, "a", counting(3), view):
        pass
    assert (view.phase, view.numbers) == ("finished", [0, 1, 2])


def test_a_view_s_first_and_last_words() -> None:
    view = CountView(3)
    phases = []
    for event in (Waiting(1), Waiting(0), Measuring(Progress("Counting", 1, 4, "numbers"), 1.0), TimedOut(9), Closed()):
        view.apply(event)
        phases.append((view.phase, view.progress))
    assert phases == [("queued", None), ("loading", None), ("running", 0.25), ("running", 0.25), ("stopped", None)]
    assert view.message.startswith("Stopped after 9 s")
    view.apply(TimedOut(1))
    view.apply(Closed())
    assert view.message.startswith("Stopped after 9 s")  # what is over stays as it ended
    failed = CountView(3)
    failed.apply(Failed("Do this."))
    failed.apply(Closed())
    assert failed.notice == {"text": "Do this.", "tone": "error", "progress": None}


def test_a_courier_brings_all_there_was_for_whoever_passed_values_over() -> None:
    parts = {"notice": SimpleNamespace(elem_id="the-notice"), "plot": SimpleNamespace(elem_id="the-plot")}
    courier = Courier(parts)
    frames = (RUNNING, {"notice": "a", "tda.cett": 0.2}, {"plot": [2]}, {"notice": "b"} | IDLE)
    values = [courier.bring(outputs) for outputs in frames]
    assert [value["parts"] for value in values] == [
        {},
        {"the-notice": '"a"'},
        {"the-notice": '"a"', "the-plot": "[2]"},
        {"the-notice": '"b"', "the-plot": "[2]"},
    ]
    assert [value["running"] for value in values] == [True, True, True, False]
    assert [value["wish"] for value in values] == ["", *['{"tda.cett": 0.2}'] * 3]
    assert len({value["run"] for value in [*values, Courier(parts).bring({"notice": "b"})]}) == 2
