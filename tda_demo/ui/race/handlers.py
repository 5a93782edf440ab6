"""What happens when someone asks for a race: worker events in, component values out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ...errors import UserError
from ..components import Outputs
from ..limits import RunRequest, checked
from ..reports import remember
from ..service import Service
from ..worker import Ticket
from .frame import Frame, buttons, notice
from .runs import gpu_need, race_job
from .view import RaceView


def submit(service: Service, owner: str, wishes: dict[str, Any]) -> tuple[RunRequest, Ticket]:
    """A place in the line for a race.

    Raises:
        UserError: something in ``wishes`` is out of the page's limits, or the line is full.
    """
    request = checked(service.offers, **wishes, limits=service.limits)
    job = partial(race_job, request=request, limits=service.limits)
    return request, service.submit(owner, job, gpu_need(request, service.limits))


def race(service: Service, owner: str, wishes: dict[str, Any], shown: dict[str, int]) -> Iterator[Outputs]:
    """A race for the page: what changed, by component name, about six times a second. Closing it ends the run.

    ``shown`` is how many layers each equaliser of the page has a slider for.
    """
    try:
        request, ticket = submit(service, owner, wishes)
    except UserError as error:
        yield {"notice": notice(RaceView(phase="failed", message=str(error)))}
        return
    view = RaceView(request)
    frame = Frame(view, shown)
    yield buttons(running=True)
    try:
        while not view.over:
            begun, told = view.phase not in ("empty", "queued"), view.phase != "empty"
            for event in service.news(ticket, begun, told):
                view.apply(event)
            yield frame.outputs()
    finally:
        service.withdraw(ticket)
    remember(service.visits.of(owner), request, view)
    yield buttons(running=False)


def result(service: Service, owner: str, wishes: dict[str, Any]) -> dict[str, Any]:
    """A race for the API: its JSON.

    Raises:
        UserError: whatever went wrong, in one sentence.
    """
    request, ticket = submit(service, owner, wishes)
    view = RaceView(request)
    try:
        while not view.over:
            for event in ticket.drain(1.0):
                view.apply(event)
    finally:
        service.withdraw(ticket)
    if view.result is None:
        raise UserError(view.message)
    return view.result.to_json()
