"""One experiment: what a visitor asks, and the job it is: get the model, measure, watch the clock."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...support.errors import UserError
from ...theory.experiment import Experiment, NumberInput
from ..job import Clock, PageJob
from ..limits import Limits, encodable, number_within, whole_within
from ..loader import Models
from ..offers import Offers
from ..zero_gpu import LOADING_SECONDS, GpuNeed

if TYPE_CHECKING:
    from ...theory.findings import Finding

SECONDS_PER_RUN = 300.0  # of one experiment on a public page; then it concludes from what it has


@dataclass(frozen=True)
class LabRequest:
    """``text`` is empty for the project's own texts; ``model`` None for the embedded one."""

    experiment: Experiment
    text: str = ""
    model: str | None = None


@dataclass(frozen=True, eq=False)
class PointMeasured:
    """An event: one more point of what can be drawn while the experiment goes on (``Experiment.live_tables``)."""

    point: Any


@dataclass(frozen=True, eq=False)
class Found:
    """The last event: what the experiment found."""

    finding: Finding


def parse_experiment(
    experiment: type[Experiment],
    offers: Offers,
    limits: Limits,
    *,
    sizes: dict[str, Any],
    text: Any = "",
    model: Any = None,
) -> LabRequest:
    """Whatever a browser sent, as a request within the limits.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    values = {name: _number(asked, sizes[name]) for name, asked in experiment.number_inputs().items()}
    return LabRequest(
        experiment(**values),
        _text(text, limits.prompt_characters) if experiment.text_use else "",
        offers.model(model) if experiment.uses_model else None,
    )


def _number(asked: NumberInput, value: Any) -> float | int:
    kind, within = ("a number", number_within) if asked.step % 1 else ("a whole number", whole_within)
    if (number := within(value, asked.low, asked.high)) is None:
        raise UserError(f"{asked.label}: {kind} from {asked.low:,g} to {asked.high:,g}.")
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
    finding = request.experiment.run(
        lm, request.text or None, clock.measure, clock.stop, lambda point: clock.tell(PointMeasured(point))
    )
    yield Found(finding)
