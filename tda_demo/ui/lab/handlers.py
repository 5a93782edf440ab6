"""What happens when someone asks for an experiment: worker events in, component values out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ...errors import UserError
from ...theory.experiment import Experiment
from ..components import Outputs
from ..service import Service
from .frame import Frame, buttons, notice
from .requests import checked
from .runs import gpu_need, lab_job
from .view import LabView


def measure(service: Service, owner: str, experiment: type[Experiment], **wishes: Any) -> Iterator[Outputs]:
    """An experiment for the page: what changed, by component name, about six times a second. Closing it ends the run;
    ``wishes`` as in ``requests.checked``."""
    try:
        request = checked(experiment, service.offers, service.limits, **wishes)
        ticket = service.submit(owner, partial(lab_job, request=request), gpu_need(request))
    except UserError as error:
        yield {"notice": notice(LabView(phase="failed", message=str(error)))}
        return
    view = LabView()
    frame = Frame(view, experiment.name)
    yield buttons(running=True)
    try:
        while not view.over:
            begun, told = view.phase not in ("empty", "queued"), view.phase != "empty"
            for event in service.news(ticket, begun, told):
                view.apply(event)
            yield frame.outputs()
    finally:
        service.withdraw(ticket)
    yield buttons(running=False)
