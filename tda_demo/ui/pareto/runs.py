"""One sweep of the page, as a job for the worker: get the model, measure row by row, watch the clock."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import UserError
from ...model.precisions import REFERENCE
from ...progress import Progress
from ..loader import GivenUp, Models, reporter
from ..worker import Ticket
from ..zero_gpu import LOADING_SECONDS, GpuNeed
from .request import PROMPT_TOKENS, SCORE_TOKENS, SECONDS, SweepRequest


@dataclass(frozen=True)
class Measuring:
    """An event: ``done`` of ``total`` steps of the sweep took ``seconds``."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """An event: one more row, as tidy fields of ``evaluate.row.Row``."""

    row: dict[str, Any]


@dataclass(frozen=True)
class TimedOut:
    """An event: the sweep was stopped because it had taken ``seconds``."""

    seconds: float


class _OutOfTime(Exception):
    pass


def gpu_need(request: SweepRequest) -> GpuNeed:
    """Allowances, not measurements: for two models, and for every row its passages and the races that time it."""
    rows = (1 + len(request.values)) * (10 + request.passages)
    return GpuNeed(request.model, 2 * LOADING_SECONDS + min(SECONDS, rows))


def sweep_job(models: Models, request: SweepRequest, seconds: float, ticket: Ticket) -> Generator[Any]:
    """``Loading`` where something is loaded, then ``Measuring`` and ``Measured``, ``TimedOut`` at the limit.

    Raises:
        UserError: the model cannot be had, or there is no such method or value of its dial.
    """
    load = reporter(ticket)
    began: float | None = None

    def report(progress: Progress) -> None:
        nonlocal began
        if progress.stage != "Sweeping":
            return load(progress)
        if ticket.stop.is_set():
            raise GivenUp
        now = time.monotonic()
        began = began or now
        if now - began > seconds:
            raise _OutOfTime
        ticket.events.put(Measuring(progress.done, progress.total, now - began))

    try:
        with suppress(GivenUp):
            # Imported here, in the worker's thread: torch must not hold up the page.
            from ...documents import passages
            from ...evaluate.evaluation import EvaluationSettings
            from ...evaluate.speed import SpeedSettings
            from ...evaluate.sweep import follow

            methods = _methods(request)
            reference = models.get(request.model, REFERENCE, load)
            lm = models.get(request.model, request.precision, load)
            texts = passages(held_out=True)[: request.passages]
            name = f"the first {len(texts)} of the project's held-out passages"
            settings = EvaluationSettings(PROMPT_TOKENS, SCORE_TOKENS)
            for row in follow(reference, lm, methods, texts, name, settings, SpeedSettings(prompts=2), report):
                yield Measured(asdict(row))
    except _OutOfTime:
        yield TimedOut(seconds)


def _methods(request: SweepRequest) -> list[Any]:
    from ...methods import METHODS

    if request.method not in METHODS:
        raise UserError(f"There is no method '{request.method}'; there are: {', '.join(METHODS)}.")
    method = METHODS[request.method]
    return [method(**{method.dial.setting: value}) for value in request.values]
