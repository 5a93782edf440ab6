"""What happens in the tab: worker events in, component values out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import gradio as gr

from ...errors import UserError
from ...methods import METHODS
from ..components import Outputs
from ..service import Service
from . import figures
from .points import points
from .request import SECONDS, checked, suggested, written
from .runs import gpu_need, sweep_job
from .view import SweepView

_LOOK_SECONDS = 0.5
_IDENTITY = ("model", "method", "settings", "precision", "tokens_sha256")


def plot(service: Service, owner: str) -> dict[str, Any] | None:
    """Everything there is to see now."""
    visit = service.visits.of(owner)
    return figures.plot(points(visit.rows, visit.race))


async def look(service: Service, owner: str) -> AsyncIterator[Outputs]:
    """The plot as the tab is opened, and again should a race that is under way end."""
    shown = service.visits.of(owner).race
    yield {"plot": plot(service, owner)}
    while service.worker.busy(owner):
        await asyncio.sleep(_LOOK_SECONDS)
        if (race := service.visits.of(owner).race) is not shown:
            shown = race
            yield {"plot": plot(service, owner)}


def sweep(service: Service, owner: str, wishes: dict[str, Any]) -> Iterator[Outputs]:
    """A sweep: what changed, by component name, about six times a second. Closing it ends the run."""
    try:
        request = checked(service.offers, **wishes)
        ticket = service.submit(owner, partial(sweep_job, request=request, seconds=SECONDS), gpu_need(request))
    except UserError as error:
        yield {"notice": notice(SweepView(phase="failed", message=str(error)))}
        return
    view, sent, kept = SweepView(expected=1 + len(request.values)), None, 0
    yield buttons(running=True)
    try:
        while not view.over:
            for event in service.news(ticket, view.phase not in ("empty", "queued"), view.phase != "empty"):
                view.apply(event)
            outputs: Outputs = {}
            if (told := notice(view)) != sent:
                outputs["notice"] = sent = told
            if len(view.rows) > kept:
                keep(service.visits.of(owner).rows, view.rows[kept:])
                kept = len(view.rows)
                outputs["plot"] = plot(service, owner)
            if outputs:
                yield outputs
    finally:
        service.withdraw(ticket)
    yield buttons(running=False)


def keep(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Adds ``new`` to a visit's ``rows``; a point measured again takes the place of the older one."""
    names = {_identity(row) for row in new}
    rows[:] = [row for row in rows if _identity(row) not in names] + new


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _IDENTITY)


def notice(view: SweepView) -> dict[str, Any]:
    tone = "error" if view.phase == "failed" else "quiet"
    return {"text": view.message, "tone": tone, "progress": view.progress}


def buttons(running: bool) -> Outputs:
    return {"run": gr.update(interactive=not running), "stop": gr.update(interactive=running)}


def dial(method: str) -> Outputs:
    """The values to begin with, and what they are values of."""
    chosen = METHODS[method].dial
    said = f"From {chosen.dense:g}, which is exact, to {chosen.sparsest:g}."
    values = written(suggested(chosen.dense, chosen.sparsest))
    return {"values": gr.update(value=values, label=f"Values of {chosen.setting}", info=said)}
