"""One experiment of the page, as a job for the worker: get the model, measure, watch the clock."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...progress import Progress
from ..loader import GivenUp, Models, reporter
from ..worker import Ticket
from ..zero_gpu import LOADING_SECONDS, GpuNeed
from .requests import SECONDS_PER_RUN, LabRequest

if TYPE_CHECKING:
    from ...theory.findings import Finding
    from ...theory.training import TrainingPoint


@dataclass(frozen=True)
class Measuring:
    """An event: how far the experiment is, and for how many seconds it has been running."""

    progress: Progress
    seconds: float


@dataclass(frozen=True, eq=False)
class Point:
    """An event: one more point of the training run's curve."""

    point: TrainingPoint


@dataclass(frozen=True, eq=False)
class Found:
    """The last event: what the experiment found; ``timed_out`` where the page's time for one was up."""

    finding: Finding
    timed_out: bool


def gpu_need(request: LabRequest) -> GpuNeed | None:
    """An allowance, not a measurement; None for the experiment that trains small models of its own, on the CPU."""
    return GpuNeed(request.model, LOADING_SECONDS + 75) if request.experiment.uses_model else None


def lab_job(
    models: Models, request: LabRequest, ticket: Ticket, seconds_per_run: float = SECONDS_PER_RUN
) -> Generator[Any]:
    """The events of an experiment, with ``Loading`` before them where a model is loaded.

    Raises:
        UserError: the model cannot be had, or a text or a setting does not fit it.
    """
    with suppress(GivenUp):
        lm = models.get(request.model, None, reporter(ticket)) if request.experiment.uses_model else None
        begin = time.monotonic()
        timed_out = False

        def report(progress: Progress) -> None:
            nonlocal timed_out
            seconds = time.monotonic() - begin
            ticket.events.put(Measuring(progress, seconds))
            if seconds > seconds_per_run and not ticket.stop.is_set():
                timed_out = True
                ticket.stop.set()

        def on_point(point: TrainingPoint) -> None:
            ticket.events.put(Point(point))

        finding = request.experiment.run(lm, request.text or None, report, ticket.stop, on_point)
        yield Found(finding, timed_out)
