"""One run of the page or of the API, as a job for the worker: get the model, race, watch the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...progress import Report
from ..limits import Limits, RunRequest
from ..loader import GivenUp, Models, reporter
from ..worker import Ticket


@dataclass(frozen=True)
class TimedOut:
    """An event: the run was stopped because it had taken ``seconds``."""

    seconds: float


def race_job(models: Models, request: RunRequest, limits: Limits, ticket: Ticket) -> Generator[Any]:
    """The events of a race, with ``Loading`` before them where something is loaded and ``TimedOut`` at the limit.

    Raises:
        UserError: the model cannot be had, or the prompt or a setting does not fit it.
    """

    with suppress(GivenUp):
        yield from _race(models, request, limits, ticket.stop, reporter(ticket))


def _race(models: Models, request: RunRequest, limits: Limits, stop: threading.Event, report: Report) -> Generator[Any]:
    lm = models.get(request.model, request.precision, report)
    # Imported here, in the worker's thread: torch must not hold up the page.
    from ...methods.tda import TDA
    from ...race import RaceSettings, race

    method = TDA(
        cett=request.cett,
        scale=request.scale,
        online=request.online,
        exempt=request.exempt,
        weighted=request.weighted,
    )
    settings = RaceSettings(request.max_new_tokens, request.temperature, request.top_p, request.seed)
    begin = None
    for event in race(lm, method, request.prompt, settings, stop, report):
        yield event
        begin = begin or time.monotonic()  # the first event: whatever had to be loaded, calibrated, compiled is there
        if time.monotonic() - begin > limits.seconds_per_run and not stop.is_set():
            stop.set()
            yield TimedOut(limits.seconds_per_run)
