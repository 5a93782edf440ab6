"""One experiment: what a visitor asks, and the job it is: get the model, measure, watch the clock."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..job import Clock, PageJob
from ..limits import Limits, encodable, number_within, whole_within
from ..loader import Models
from ..offers import Offers
from ..zero_gpu import LOADING_SECONDS, GpuNeed
from .experiments import Experiment, Size

if TYPE_CHECKING:
    from ...theory.findings import Finding
    from ...theory.training import TrainingPoint

SECONDS_PER_RUN = 300.0  # of one experiment on a public page; then it concludes from what it has


@dataclass(frozen=True)
class LabRequest:
    """``settings`` are the experiment's own; ``text`` is empty for the project's own texts; ``model`` None for the
    embedded one."""

    experiment: Experiment
    settings: Any
    text: str = ""
    model: str | None = None


@dataclass(frozen=True, eq=False)
class PointMeasured:
    """An event: one more point of the training run's curve."""

    point: TrainingPoint


@dataclass(frozen=True, eq=False)
class Found:
    """The last event: what the experiment found."""

    finding: Finding


def parse_experiment(
    experiment: Experiment, offers: Offers, limits: Limits, *, sizes: dict[str, Any], text: Any = "", model: Any = None
) -> LabRequest:
    """Whatever a browser sent, as a request within the limits.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    values = {size.name: _number(size, sizes[size.name]) for size in experiment.sizes}
    return LabRequest(
        experiment,
        experiment.settings(**values),
        _text(text, limits.prompt_characters) if experiment.text else "",
        offers.model(model) if experiment.uses_model else None,
    )


def _number(size: Size, value: Any) -> float | int:
    kind, within = ("a number", number_within) if size.step % 1 else ("a whole number", whole_within)
    if (number := within(value, size.low, size.high)) is None:
        raise UserError(f"{size.label}: {kind} from {size.low:,g} to {size.high:,g}.")
    return number


def _text(value: Any, most: int) -> str:
    text = encodable(value).strip() if isinstance(value, str) else ""
    if len(text) > most:
        raise UserError(f"Your text has {len(text):,} characters; this page takes at most {most:,}: shorten it.")
    return text


def lab_job(request: LabRequest, seconds: float = SECONDS_PER_RUN) -> PageJob[LabRequest]:
    """Its need of a GPU is an allowance; none of what trains small models of its own, on the CPU."""
    need = GpuNeed(request.model, LOADING_SECONDS + 75) if request.experiment.uses_model else None
    return PageJob(measure_experiment, request, seconds, need)


def measure_experiment(models: Models, request: LabRequest, clock: Clock) -> Generator[Found]:
    """Stopped, the experiment concludes from what it has.

    Raises:
        UserError: the model cannot be had, or a text or a setting does not fit it.
    """
    lm = models.get(request.model, None, clock.load) if request.experiment.uses_model else None
    clock.tick()
    yield Found(_run(request, lm, clock))


def _run(request: LabRequest, lm: Any, clock: Clock) -> Finding:
    """Calls the experiment, the function of ``theory`` that is called as its module is, with what it takes of this."""
    name = request.experiment.name.replace("-", "_")
    # Imported here, in the worker's thread: torch must not hold up the page.
    experiment = getattr(import_module(f"tda_demo.theory.{name}"), name)
    offered = {
        "lm": lm,
        "settings": request.settings,
        "texts": request.text or None,
        "on_point": lambda point: clock.tell(PointMeasured(point)),
        "report": clock.measure,
        "stop": clock.stop,
    }
    return experiment(**{name: offered[name] for name in inspect.signature(experiment).parameters})
