"""One thread that does everything the model does, first come, first served, whoever asks: page, API or start-up.

Two races at once would spoil each other's times, and one lasting thread keeps the native thread pools warm.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from ..support.errors import UserError
from ..support.interruption import GivenUp, looking
from ..support.progress import Progress, Report

logger = logging.getLogger(__name__)
_WATCH_SECONDS = 0.2
_QUIET_SECONDS = 5.0  # without anybody in the line: a visitor who reads a race's end may start the next
# What a frame takes to be made, sent and drawn, on the cores that the next step would use.
_SHOWN_SECONDS = 0.05
_PATIENCE = 0.05  # of a frame that is due, in seconds: a job that is at something long lets nobody wait for its events
_UNFOLLOWED = 25  # looks in a row, 5 s, at a job that its follower has not come back to: nobody ever will
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


class Closed:
    """The very last event of every job, whatever became of it."""


@dataclass(eq=False)
class Ticket:
    """A job's place in the line and the events it has yielded. ``owner`` is the session that may stop it, "" none.

    The job runs in the ``context`` it was submitted in: there gradio keeps the visitor's request. It goes on for as
    long as somebody ``listens``, and once it is followed, for as long as it is ``followed`` on.
    """

    owner: str
    job: Callable[[Ticket], Generator[Any]]
    listens: Callable[[], bool] = lambda: True
    stop: threading.Event = field(default_factory=threading.Event)
    withdrawn: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    context: Context = field(default_factory=copy_context)
    _due: threading.Event = field(default_factory=threading.Event)
    _handed: threading.Event = field(default_factory=threading.Event)
    _followers: int = 0  # calls that wait for its news now
    _unfollowed: int | None = None  # looks since the last one; None before the first

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Somebody waits for the job's news."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            self._unfollowed = 0

    def abandoned(self) -> bool:
        """Whether nobody waits for the job any more; to be asked at every look.

        Looks are counted and not seconds: a machine that stood still has kept the followers from coming too.
        """
        if self._unfollowed is not None:
            self._unfollowed = 0 if self._followers else self._unfollowed + 1
        return not self.listens() or (self._unfollowed or 0) > _UNFOLLOWED

    def look(self) -> None:
        """Raises GivenUp once the job is withdrawn."""
        if self.withdrawn.is_set():
            raise GivenUp

    def drain(self, seconds: float) -> list[Any]:
        """The events of the coming ``seconds``; sooner when the job closes. [] when nothing happened.

        Sleeps through them rather than wake at each: a waking thread takes the interpreter from the one that steps.
        Wakes between two events, while the job pauses, and so does whoever draws them.
        """
        if not self.closed.wait(seconds) and seconds:
            self._handed.clear()
            self._due.set()
            self._handed.wait(_PATIENCE)
        return [self.events.get_nowait() for _ in range(self.events.qsize())]

    def put(self, event: Any) -> None:
        """An event of the job's, which then pauses where a frame is due: what is timed is timed undisturbed."""
        self.events.put(event)
        if self._due.is_set():
            self._due.clear()
            self._handed.set()
            time.sleep(_SHOWN_SECONDS)

    def close(self) -> None:
        """Puts the last event."""
        self.events.put(Closed())
        self.closed.set()
        self._handed.set()


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
        with looking(ticket.look), closing(ticket.job(ticket)) as events:
            for event in events:
                ticket.put(event)
                if ticket.withdrawn.is_set():
                    break
    except GivenUp:
        pass
    except UserError as error:
        ticket.events.put(Failed(str(error)))
    except Exception:
        logger.exception("A run failed.")
        ticket.events.put(Failed(_MISHAP))
    ticket.close()


class Worker:
    """Runs tickets one at a time in a daemon thread. At most ``waiting`` tickets wait.

    Another thread looks whether anybody still waits for them, and withdraws those that nobody does. When the line has
    been empty for a while the first does what ``quiet`` does, which is True as long as there is more; it ends by
    GivenUp as soon as somebody comes, wherever it looks or reports.
    """

    def __init__(
        self,
        waiting: int,
        after: Callable[[], None] = lambda: None,
        quiet: Callable[[Report], bool] = lambda _: False,
    ) -> None:
        self.waiting = waiting
        self._after = after  # of every job
        self._quiet = quiet
        self._changed = threading.Condition()
        self._line: list[Ticket] = []
        self._running: Ticket | None = None
        threading.Thread(target=self._work, name="model", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def submit(
        self, owner: str, job: Callable[[Ticket], Generator[Any]], listens: Callable[[], bool] = lambda: True
    ) -> Ticket:
        """Puts ``job`` at the end of the line; it ends there or at work once nobody ``listens``.

        Raises:
            UserError: the line is full.
        """
        ticket = Ticket(owner, job, listens)
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
            return any(ticket.owner == owner for ticket in self._all())

    def _all(self) -> list[Ticket]:
        return [ticket for ticket in (self._running, *self._line) if ticket is not None]

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
            mine = [ticket for ticket in self._all() if owner and ticket.owner == owner]
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

    def _watch(self) -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._changed:
                tickets = self._all()
            for ticket in tickets:
                if not ticket.withdrawn.is_set() and ticket.abandoned():
                    self.withdraw(ticket)

    def _work(self) -> None:
        more = False
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._line, timeout=_QUIET_SECONDS if more else None)
                self._running = ticket = self._line.pop(0) if self._line else None
                self._changed.notify_all()
            if ticket is None:
                more = self._use_quiet()
                continue
            ticket.context.run(carry_out, ticket)
            del ticket
            self._after()
            more = True

    def _use_quiet(self) -> bool:
        def give_way(_: Progress | None = None) -> None:
            if self._line:
                raise GivenUp

        try:
            with looking(give_way):
                return self._quiet(give_way)
        except GivenUp:
            return True
        except Exception:
            logger.exception("What was done while nobody waited failed.")
            return False
