"""One thread that does everything the model does, first come, first served, whoever asks: page, API or start-up.

Two races at once would spoil each other's times, and one lasting thread keeps the native thread pools warm.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from ..support.errors import UserError
from ..support.progress import Progress, Report

logger = logging.getLogger(__name__)
_MISHAP = "Something went wrong in this run; the server's log has the details. Try again."


@dataclass(frozen=True)
class Waiting:
    """An event: ``place`` runs come before this one."""

    place: int


@dataclass(frozen=True)
class Loading:
    """An event: ``progress`` of getting the model ready."""

    progress: Progress


@dataclass(frozen=True)
class Failed:
    """The last event of a job that could not go on; ``message`` is for the reader."""

    message: str


class GivenUp(Exception):
    """Breaks off a download or a calibration that its visitor has stopped waiting for."""


class Closed:
    """The very last event of every job, whatever became of it."""


@dataclass(eq=False)
class Ticket:
    """A job's place in the line and the events it has yielded. ``owner`` is the session that may stop it.

    The job runs in the ``context`` it was submitted in: there gradio keeps the visitor's request.
    """

    owner: str
    job: Callable[[Ticket], Generator[Any]]
    stop: threading.Event = field(default_factory=threading.Event)
    withdrawn: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    context: Context = field(default_factory=copy_context)

    def drain(self, seconds: float) -> list[Any]:
        """The events of the coming ``seconds``; sooner when the job closes. [] when nothing happened.

        Sleeps through them rather than wake at each: a waking thread takes the interpreter from the one that steps.
        """
        self.closed.wait(seconds)
        return [self.events.get_nowait() for _ in range(self.events.qsize())]

    def close(self) -> None:
        """Puts the last event."""
        self.events.put(Closed())
        self.closed.set()


def reporter(ticket: Ticket) -> Report:
    """Tells the job's visitor of every progress as ``Loading``; raises GivenUp once the job is to stop."""

    def report(progress: Progress) -> None:
        if ticket.stop.is_set():
            raise GivenUp
        ticket.events.put(Loading(progress))

    return report


def carry_out(ticket: Ticket) -> None:
    """Runs the job of ``ticket`` to its end and puts its events; whatever goes wrong becomes ``Failed``."""
    try:
        with closing(ticket.job(ticket)) as events:
            for event in events:
                ticket.events.put(event)
                if ticket.withdrawn.is_set():
                    break
    except UserError as error:
        ticket.events.put(Failed(str(error)))
    except Exception:
        logger.exception("A run failed.")
        ticket.events.put(Failed(_MISHAP))
    ticket.close()


class Worker:
    """Runs tickets one at a time in a daemon thread. At most ``waiting`` tickets wait."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self._changed = threading.Condition()
        self._line: list[Ticket] = []
        self._running: Ticket | None = None
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def submit(self, owner: str, job: Callable[[Ticket], Generator[Any]]) -> Ticket:
        """Puts ``job`` at the end of the line.

        Raises:
            UserError: the line is full.
        """
        ticket = Ticket(owner, job)
        with self._changed:
            if len(self._line) >= self.waiting:
                raise UserError(f"{self.waiting} runs are waiting already: try again in a minute.")
            self._line.append(ticket)
            self._changed.notify_all()
        return ticket

    def place(self, ticket: Ticket) -> int:
        """How many jobs come before ``ticket``, the running one included; 0 once it runs or is over."""
        with self._changed:
            return self._place(ticket)

    def await_turn(self, ticket: Ticket, seconds: float) -> int:
        """The place of ``ticket`` as soon as it changes, or after ``seconds``."""
        with self._changed:
            before = self._place(ticket)
            self._changed.wait_for(lambda: self._place(ticket) != before, timeout=seconds)
            return self._place(ticket)

    def busy(self, owner: str) -> bool:
        """Whether a job of the owner runs or waits."""
        with self._changed:
            return any(ticket.owner == owner for ticket in (self._running, *self._line) if ticket is not None)

    def _place(self, ticket: Ticket) -> int:
        return self._line.index(ticket) + (self._running is not None) if ticket in self._line else 0

    def stop(self, owner: str) -> None:
        """Ends the owner's jobs at their next step; they still judge what they have. Those that wait do not start."""
        self._end(owner, withdraw=False)

    def abandon(self, owner: str) -> None:
        """Ends the owner's jobs at their next event: nobody is looking any more."""
        self._end(owner, withdraw=True)

    def withdraw(self, ticket: Ticket) -> None:
        """``abandon`` for one ticket. Nothing happens to one that is over."""
        ticket.withdrawn.set()
        ticket.stop.set()
        self._leave(ticket)

    def _end(self, owner: str, withdraw: bool) -> None:
        with self._changed:
            mine = [t for t in (self._running, *self._line) if t is not None and t.owner == owner]
        for ticket in mine:
            if withdraw:
                ticket.withdrawn.set()
            ticket.stop.set()
            self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._line:
                self._line.remove(ticket)
                self._changed.notify_all()
                ticket.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._line)
                self._running = ticket = self._line.pop(0)
                self._changed.notify_all()
            ticket.context.run(carry_out, ticket)
            del ticket
