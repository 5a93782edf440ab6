"""One run of the page or of the API, as a job for the worker: get the model, race, watch the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...methods import METHODS, Method
from ...progress import Report
from ..limits import Budget, Limits, RunRequest
from ..loader import GivenUp, Models, reporter
from ..worker import Ticket
from ..zero_gpu import LOADING_SECONDS, GpuNeed

if TYPE_CHECKING:
    from ...models import LoadedModel


@dataclass(frozen=True)
class Ready:
    """An event: the model is there. ``d_ff`` of every layer, and the bytes of the MLP weights a dense step reads."""

    d_ff: tuple[int, ...]
    mlp_bytes: float


@dataclass(frozen=True)
class SettingFound:
    """An event: a ``budget`` puts the ``setting`` of ``method`` at ``value``.

    There the calibration passages cost ``kl`` nats per token and read ``mlp_share`` 0..1 of the MLP weight bytes.
    """

    method: str
    budget: Budget
    setting: str
    value: float
    kl: float
    mlp_share: float


@dataclass(frozen=True)
class TimedOut:
    """An event: the run was stopped because it had taken ``seconds``."""

    seconds: float


def gpu_need(request: RunRequest, limits: Limits) -> GpuNeed:
    """Allowances, not measurements: the less is asked for, the sooner a GPU is lent. The rest goes back at the end."""
    methods = 1 if request.rival is None else 2
    calibration = 30 * methods * (1 if request.budget is None else 2)
    decoding = min(limits.seconds_per_run, 0.05 * request.max_new_tokens * (1 + methods))
    return GpuNeed(request.model, LOADING_SECONDS + calibration + decoding)


def race_job(models: Models, request: RunRequest, limits: Limits, ticket: Ticket) -> Generator[Any]:
    """The events of a race, after ``Loading`` where something is loaded, ``Ready``, and for a budget ``SettingFound``.

    Of two methods each has its own ``SettingFound``. ``TimedOut`` comes at the limit.

    Raises:
        UserError: the model cannot be had, or the prompt, a setting or the budget does not fit it.
    """
    with suppress(GivenUp):
        yield from _race(models, request, limits, ticket.stop, reporter(ticket))


def _race(models: Models, request: RunRequest, limits: Limits, stop: threading.Event, report: Report) -> Generator[Any]:
    lm = models.get(request.model, request.precision, report)
    # Imported here, in the worker's thread: torch must not hold up the page.
    from ...decode.choose import step_bytes
    from ...race import RaceSettings, race

    widths = tuple(block.d_ff for block in lm.blocks)
    yield Ready(widths, step_bytes(lm).mlp)
    method = yield from _method(lm, request.method, request.settings, request.budget, report)
    rival = None
    if request.rival is not None:
        rival = yield from _method(lm, request.rival, request.rival_settings, request.budget, report)
    settings = RaceSettings(request.max_new_tokens, request.temperature, request.top_p, request.seed)
    begin = None
    for event in race(lm, method, request.prompt, settings, stop, report, rival):
        yield event
        begin = begin or time.monotonic()  # the first event: whatever had to be loaded, calibrated, compiled is there
        if time.monotonic() - begin > limits.seconds_per_run and not stop.is_set():
            stop.set()
            yield TimedOut(limits.seconds_per_run)


def _method(
    lm: LoadedModel, name: str, settings: dict[str, Any], budget: Budget | None, report: Report
) -> Generator[SettingFound, None, Method]:
    """The method as it was asked for, its dial turned to the budget where there is one."""
    method = METHODS[name](**settings)
    if budget is None:
        return method
    from ...evaluate.budget import quality_curve, turned

    curve = quality_curve(lm, method, report)
    value = curve.value_for_kl(budget.most) if budget.of == "kl" else curve.value_for_mlp_share(budget.most)
    method = turned(method, value)
    value = method.settings()[curve.setting]
    yield SettingFound(name, budget, curve.setting, value, curve.kl_at(value), curve.mlp_share_at(value))
    return method
