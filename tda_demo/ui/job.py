"""The page's one pipeline: a request becomes a job, waits in the line, streams events, and a view of them is sent.

A tab adds its request and how it is measured (``PageJob``), what its own events change (``JobView``), and what it draws
and remembers (``Frame``). ``wire`` ties these to its buttons; for the API ``follow_job`` is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import gradio as gr

from ..support.errors import UserError
from ..support.interruption import GivenUp, looking
from ..support.progress import Progress
from . import wording
from .models import Models
from .requests import LIMITS
from .service import Service
from .visits import Visit, owner
from .widgets import EVENT, Courier, Outputs, courier, in_browser, sentence
from .worker import Closed, Failed, Loading, Ticket, Waiting, reporter
from .zero_gpu import GpuNeed

if TYPE_CHECKING:
    import threading

    from ..support.progress import Report

NOT_BEGUN = ("empty", "queued")
OVER = ("finished", "stopped", "failed")
RUNNING, IDLE = {"running": True}, {"running": False}  # which of Run and Stop can be pressed
CONCLUDING_SECONDS = 5.0  # of a job whose time is up, to judge what it has
_HEARTBEAT_SECONDS = 1.0  # a frame comes this often even when nothing changed: gradio hears of a closed tab by it

Request = TypeVar("Request")
View = TypeVar("View", bound="JobView")


@dataclass(frozen=True)
class Measuring:
    """An event: how far the work is after ``seconds`` of it."""

    progress: Progress
    seconds: float


@dataclass(frozen=True)
class TimedOut:
    """An event: the job was stopped because it had taken ``seconds``, the most it is given."""

    seconds: float


class Clock:
    """What a job reports to while it runs; it ends the job when its time is up.

    Nothing is counted before ``begin``: what a model takes to be fetched and loaded serves everybody. From then on a
    job may take ``limit`` seconds. What it has to prepare first, tables and training that are kept, counts apart,
    and may take ``LIMITS.seconds_to_prepare``. A job that has something to conclude from is asked to stop, and cut
    off ``CONCLUDING_SECONDS`` later; one that has not is given up at once.
    """

    def __init__(self, ticket: Ticket, limit: float) -> None:
        self.stop: threading.Event = ticket.stop
        self.tell: Callable[[Any], None] = ticket.events.put
        self.concludes = False
        self._ticket = ticket
        self._told: Report = reporter(ticket)
        self._limit = limit
        self._last: float | None = None
        self._preparing = False
        self._spent = {False: 0.0, True: 0.0}  # seconds, of work and of what it needs prepared

    def begin(self) -> None:
        """The model is held from now on."""
        if self._last is None:
            self._last = time.monotonic()

    def tick(self) -> float:
        """The seconds of work so far. At the limit ``stop`` is set and ``TimedOut`` told, once."""
        if self._last is None:
            self.begin()
        else:
            self._count()
        if self._overdue() >= 0 and not self.stop.is_set():
            self.stop.set()
            self.tell(TimedOut(LIMITS.seconds_to_prepare if self._preparing else self._limit))
        return self._spent[False]

    def look(self) -> None:
        """Asked from inside a model's passes.

        Raises:
            GivenUp: nobody listens any more, or there is no time left.
        """
        self._ticket.look()
        if self._last is None:
            return
        self.tick()
        if self.stop.is_set() and (not self.concludes or self._overdue() > CONCLUDING_SECONDS):
            raise GivenUp

    def load(self, progress: Progress) -> None:
        """A report of what is fetched or prepared.

        Raises:
            GivenUp: the job is to stop.
        """
        if self._last is not None:
            self.tick()
            self._preparing = not 0 < progress.total <= progress.done
        self._told(progress)

    def measure(self, progress: Progress) -> None:
        """A report of the work that is measured; what is loaded before it goes to ``load``."""
        self._preparing = False
        seconds = self.tick()
        self.tell(Measuring(progress, seconds))

    def event(self) -> None:
        """An event was told that there is something to conclude from."""
        self._preparing = False
        self.concludes = True
        self.tick()

    def _count(self) -> None:
        assert self._last is not None, "begin comes first"
        now = time.monotonic()
        self._spent[self._preparing] += now - self._last
        self._last = now

    def _overdue(self) -> float:
        """Seconds beyond a limit; negative within both."""
        return max(self._spent[False] - self._limit, self._spent[True] - LIMITS.seconds_to_prepare)


@dataclass(frozen=True)
class PageJob(Generic[Request]):
    """A ``request`` and the function that measures it in at most ``seconds``: a module's own, so that it can travel.

    ``measure`` yields events and may raise UserError, or GivenUp once it is to stop; ``need`` is of a GPU that is lent.
    """

    measure: Callable[[Models, Request, Clock], Generator[Any]]
    request: Request
    seconds: float
    need: GpuNeed | None

    def __call__(self, models: Models, *, ticket: Ticket) -> Generator[Any]:
        clock = Clock(ticket, self.seconds)
        with suppress(GivenUp), looking(clock.look):
            yield from self.measure(models, self.request, clock)


@dataclass(kw_only=True)
class JobView:
    """State of one job: a reducer of its events, which knows no clock. A tab says what its own events change.

    ``phase`` is empty, queued, loading, running, finished, stopped, failed, or a tab's own; ``message`` says it in a
    sentence; ``progress`` is 0..1 where it is known; ``timed_out`` says so once the job was stopped for its time.
    """

    queue_reason: ClassVar[str] = "one race runs at a time, so that none disturbs another's times"

    phase: str = "empty"
    message: str = ""
    progress: float | None = None
    timed_out: str = ""

    @property
    def over(self) -> bool:
        return self.phase in OVER

    @property
    def notice(self) -> dict[str, Any]:
        return sentence(self.message, "error" if self.phase == "failed" else "quiet", self.progress)

    def apply(self, event: Any) -> None:
        match event:
            case Waiting(0):
                self.begin()
            case Waiting(place):
                self.say("queued", wording.waiting(place, self.queue_reason))
            case Loading(progress):
                self.say("loading", wording.progress_text(progress), wording.share(progress))
            case Measuring(progress, seconds):
                self.say("running", self.measuring(progress, seconds), wording.share(progress))
            case TimedOut() | Closed() if self.over:
                pass  # what is over stays as it ended
            case TimedOut(seconds):
                self.timed_out = self.message = self.out_of_time(seconds)
            case Failed(message):
                self.say("failed", message)
            case Closed():
                self.close()
            case _:
                self.receive(event)

    def say(self, phase: str, message: str, progress: float | None = None) -> None:
        self.phase, self.message, self.progress = phase, message, progress

    def begin(self) -> None:
        """The job's turn has come."""
        self.say("loading", "Getting ready…")

    def receive(self, event: Any) -> None:
        """An event of the tab's own."""

    def close(self) -> None:
        """The job is over, and nothing has said how it ended."""
        self.say("stopped", self.timed_out or "Stopped.")

    def measuring(self, progress: Progress, seconds: float) -> str:
        """How far the work is after ``seconds`` of it."""
        return wording.progress_text(progress)

    def out_of_time(self, seconds: float) -> str:
        return f"Stopped after {seconds:g} s, the most this page gives to one run."


class Frame(Generic[View]):
    """Draws one ``view`` again and again: values of the page's components, each sent only when it changed."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.sent: Outputs = {}

    def draw(self) -> Outputs:
        """What a tab shows beside the notice, by component name; what is known to be as it was may be left out."""
        return {}

    def remember(self, visit: Visit) -> None:
        """Keeps for the visit what the view has by now."""

    def outputs(self) -> Outputs:
        """What is new since the last call."""
        values = {"notice": self.view.notice, **self.draw()}
        new = {name: value for name, value in values.items() if name not in self.sent or self.sent[name] != value}
        self.sent |= new
        return new


def follow_job(service: Service, owner: str, job: PageJob[Any], view: JobView) -> Generator[None]:
    """Puts ``job`` in the line, then moves ``view`` on until it is over, a frame at a time. Closing it ends the job.

    Raises:
        UserError: the line is full.
    """
    ticket = service.submit(owner, job, job.need)
    try:
        yield  # begun, so that whoever closes it from here on gives the place in the line back
        while not view.over:
            for event in service.news(ticket, begun=view.phase not in NOT_BEGUN, first=view.phase == "empty"):
                view.apply(event)
            yield
    finally:
        service.withdraw(ticket)


JobAndFrame = tuple[PageJob[Any], Frame[Any]]  # what a visitor asks to have measured, and what will draw it


def stream(service: Service, owner: str, start: Callable[[], JobAndFrame]) -> Generator[Outputs]:
    """The job of ``start``, or its UserError: what changed on the page, by component name, about four times a second.

    Closing it ends the job.
    """
    try:
        job, frame = start()
        frames = follow_job(service, owner, job, frame.view)
        next(frames)
    except UserError as error:
        yield {"notice": sentence(str(error), "error")}
        return
    with closing(frames):
        yield RUNNING
        sent = time.monotonic()
        for _ in frames:
            frame.remember(service.visits.of(owner))
            outputs = frame.outputs()
            if outputs or time.monotonic() - sent >= _HEARTBEAT_SECONDS:
                yield outputs
                sent = time.monotonic()
    yield IDLE


def wire(
    service: Service,
    parts: dict[str, Any],
    inputs: list[Any],
    start: Callable[..., JobAndFrame],
    *others: Any,
) -> None:
    """Lets Run, and any ``others`` of the tab's events, stream the job that ``start`` makes of ``inputs``' values.

    Stop ends it. Its frames change ``parts``.
    """

    frames, buttons = courier(), [parts["run"], parts["stop"]]

    def run(request: gr.Request, *values: Any) -> Iterator[Any]:
        news = Courier(parts)
        with closing(stream(service, owner(request), lambda: start(*values))) as all_outputs:
            for outputs in all_outputs:
                yield news.bring(outputs) if outputs else gr.skip()

    gr.on([*others, parts["run"].click], run, inputs, frames, **EVENT)
    in_browser(frames.click, "({ running }) => window.tda.buttons(running)", buttons, frames)
    parts["stop"].click(service.stop, queue=False, **EVENT)
