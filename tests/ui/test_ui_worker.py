"""The line in front of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tda_demo.ui.worker as worker_module
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress, Report
from tda_demo.ui.interruption import interruptible
from tda_demo.ui.worker import _UNFOLLOWED, _WATCH_SECONDS, Closed, Failed, Ticket, Worker


def everything(ticket: Ticket) -> list[Any]:
    """All events up to and without Closed."""
    seen: list[Any] = []
    deadline = time.monotonic() + 5
    while not (seen and isinstance(seen[-1], Closed)):
        assert time.monotonic() < deadline, f"the job did not close: {seen}"
        seen += ticket.drain(0.05)
    return seen[:-1]


def count_to_three(_: Ticket) -> Generator[int]:
    yield from (1, 2, 3)


def until_stopped(ticket: Ticket) -> Generator[str]:
    yield "running"
    assert ticket.stop.wait(5)
    yield "stopped"
    yield "judged"


def running(worker: Worker, owner: str = "a") -> Ticket:
    """A job that runs until it is stopped, already at it."""
    ticket = worker.submit(owner, until_stopped)
    assert ticket.events.get(timeout=5) == "running"
    return ticket


def test_events_come_in_order() -> None:
    assert everything(Worker(1).submit("a", count_to_three)) == [1, 2, 3]


def test_a_frame_falls_between_two_events_and_the_job_waits_until_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_SHOWN_SECONDS", 2.0)
    monkeypatch.setattr(worker_module, "_PATIENCE", 5.0)
    stepping = threading.Event()

    def steps(ticket: Ticket) -> Generator[str]:
        while not ticket.stop.is_set():
            stepping.set()
            time.sleep(0.002)
            stepping.clear()
            yield "step"

    worker = Worker(1)
    ticket = worker.submit("a", steps)
    assert set(ticket.drain(0.05)) == {"step"}
    assert not stepping.is_set() and ticket.events.empty()
    time.sleep(0.1)  # fifty steps' worth
    assert ticket.events.empty()
    worker.withdraw(ticket)
    assert ticket.closed.wait(5)


def test_what_takes_long_between_two_events_keeps_no_frame_waiting() -> None:
    ticket = running(Worker(1))
    assert ticket.drain(0.01) == []  # though no event comes
    ticket.stop.set()
    assert everything(ticket) == ["stopped", "judged"]


def test_first_come_first_served() -> None:
    worker, order = Worker(8), []

    def job(ticket: Ticket) -> Generator[None]:
        order.append(ticket.owner)
        yield

    first = running(worker)
    tickets = [worker.submit(str(number), job) for number in range(5)]
    assert [worker.place(ticket) for ticket in tickets] == [1, 2, 3, 4, 5]
    worker.stop(first.owner)
    for ticket in tickets:
        everything(ticket)
    assert order == ["0", "1", "2", "3", "4"]
    assert [worker.place(ticket) for ticket in tickets] == [0] * 5


def test_who_waits_hears_at_once_that_the_line_moved() -> None:
    worker = Worker(8)
    first, second, third = running(worker), worker.submit("b", until_stopped), worker.submit("c", count_to_three)
    assert worker.await_turn(third, 0.01) == 2
    threading.Timer(0.05, worker.stop, [first.owner]).start()
    begin = time.monotonic()
    assert worker.await_turn(third, 5) == 1 and time.monotonic() - begin < 2
    worker.withdraw(second)
    everything(third)


def test_one_job_at_a_time() -> None:
    worker, inside, most = Worker(8), 0, 0
    lock = threading.Lock()

    def job(_: Ticket) -> Generator[None]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        yield
        with lock:
            inside -= 1

    for ticket in [worker.submit(str(number), job) for number in range(8)]:
        everything(ticket)
    assert most == 1


def test_a_full_line_refuses() -> None:
    worker = Worker(1)
    first = running(worker)
    worker.submit("b", count_to_three)
    with pytest.raises(UserError, match="waiting already"):
        worker.submit("c", count_to_three)
    worker.stop(first.owner)


def test_stop_lets_the_job_end_its_own_way() -> None:
    worker = Worker(1)
    ticket = running(worker)
    worker.stop("a")
    assert everything(ticket) == ["stopped", "judged"]


def test_stop_is_for_ones_own_jobs() -> None:
    worker = Worker(1)
    ticket = running(worker)
    worker.stop("b")
    assert not ticket.stop.is_set()
    worker.stop("a")


def test_a_stopped_job_that_waits_does_not_start() -> None:
    worker = Worker(2)
    first, second, third = running(worker), worker.submit("b", count_to_three), worker.submit("c", count_to_three)
    worker.stop("b")
    assert everything(second) == []
    assert worker.place(third) == 1
    worker.stop(first.owner)
    assert everything(third) == [1, 2, 3]


@pytest.mark.parametrize("leave", [lambda worker, ticket: worker.abandon("a"), Worker.withdraw])
def test_leaving_ends_the_job_at_its_next_event(leave: Any) -> None:
    worker, closed = Worker(1), threading.Event()

    def job(ticket: Ticket) -> Generator[str]:
        try:
            yield from until_stopped(ticket)
        finally:
            closed.set()

    ticket = worker.submit("a", job)
    assert ticket.events.get(timeout=5) == "running"
    leave(worker, ticket)
    assert everything(ticket) == ["stopped"]
    assert closed.wait(1)


def endless(ticket: Ticket) -> Generator[int]:
    """A job that nothing but its withdrawal ends."""
    number = 0
    while True:
        yield number
        time.sleep(0.01)


def test_a_job_nobody_listens_to_ends_by_itself_and_so_does_one_that_waits() -> None:
    worker, listening = Worker(2), threading.Event()
    listening.set()
    running, waiting = (worker.submit(owner, endless, listening.is_set) for owner in "ab")
    assert not running.closed.wait(3 * _WATCH_SECONDS) and not waiting.closed.is_set()
    listening.clear()
    assert running.closed.wait(5) and waiting.closed.wait(5)
    assert everything(worker.submit("c", count_to_three)) == [1, 2, 3]


def test_a_job_whose_follower_never_comes_back_is_abandoned() -> None:
    ticket = Ticket("a", endless)
    assert not any(ticket.abandoned() for _ in range(3 * _UNFOLLOWED)), "nobody has followed it yet"
    with ticket.followed():
        assert not any(ticket.abandoned() for _ in range(3 * _UNFOLLOWED))
    assert not any(ticket.abandoned() for _ in range(_UNFOLLOWED))
    assert ticket.abandoned()


def test_deep_within_a_model_it_is_given_up_too() -> None:
    worker, inside = Worker(1), threading.Event()

    def job(_: Ticket) -> Generator[None]:
        block = nn.Linear(1, 1)
        lm = SimpleNamespace(blocks=[SimpleNamespace(linears=[block], down=block)])
        interruptible(lm)  # type: ignore[arg-type]
        while True:  # a pass that yields nothing
            block(torch.zeros(1))
            inside.set()
        yield

    ticket = worker.submit("a", job)
    assert inside.wait(10)
    worker.withdraw(ticket)
    assert everything(ticket) == []


def test_who_has_no_session_owns_nothing_that_another_could_stop() -> None:
    worker = Worker(1)
    ticket = running(worker, "")
    worker.stop("")
    worker.abandon("")
    assert not ticket.stop.is_set()
    worker.withdraw(ticket)


def test_an_error_for_the_reader_is_told_and_the_next_job_runs() -> None:
    def job(_: Ticket) -> Generator[None]:
        raise UserError("Do this instead.")
        yield

    worker = Worker(2)
    assert everything(worker.submit("a", job)) == [Failed("Do this instead.")]
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]


def test_any_other_error_is_logged_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    def job(_: Ticket) -> Generator[int]:
        yield 1 // 0

    worker = Worker(2)
    (failed,) = everything(worker.submit("a", job))
    assert "server's log" in failed.message and "division" not in failed.message
    assert "ZeroDivisionError" in caplog.text
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]


def test_withdrawing_what_is_over_does_nothing() -> None:
    worker = Worker(1)
    ticket = worker.submit("a", count_to_three)
    everything(ticket)
    worker.withdraw(ticket)
    assert ticket.drain(0.01) == []


def test_a_quiet_moment_is_used_and_ends_when_somebody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_QUIET_SECONDS", 0.05)
    calls, at_it = [], threading.Event()

    def quiet(report: Report) -> bool:
        calls.append(time.monotonic())
        at_it.set()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            report(Progress("Calibrating", 0, 0, ""))
            time.sleep(0.01)
        raise AssertionError("nobody interrupted it")

    worker = Worker(1, quiet=quiet)
    time.sleep(0.3)
    assert not calls  # nothing has run yet, so nothing is there to be done
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]
    assert at_it.wait(5)
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]


def test_what_is_done_in_quiet_ends_once_there_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_QUIET_SECONDS", 0.01)
    left = [True, True, False]
    worker = Worker(1, quiet=lambda _: left.pop(0))
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]
    time.sleep(0.5)
    assert not left


def test_a_mishap_in_quiet_hurts_no_visitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_QUIET_SECONDS", 0.01)
    failed = threading.Event()

    def fails(_: Report) -> bool:
        failed.set()
        raise ValueError("a mishap")

    worker = Worker(1, quiet=fails)
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]
    assert failed.wait(5)
    assert everything(worker.submit("a", count_to_three)) == [1, 2, 3]
