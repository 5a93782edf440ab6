"""One experiment: what a visitor asks, the job that measures it, and what its events change on the page."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ...support.errors import UserError
from ...support.progress import Progress
from ...theory import EXPERIMENTS
from ...theory.experiment import Experiment, NumberInput
from .. import wording
from ..job import Clock, Frame, JobView, PageJob
from ..models import Models
from ..requests import Limits, Offers, integer_within, number_within, replace_surrogates
from ..widgets import Outputs
from ..zero_gpu import LOADING_SECONDS, GpuNeed
from .figures import PLOTS
from .figures.chart import value

if TYPE_CHECKING:
    from ...theory.findings import Check, Finding


SECONDS_PER_RUN = 300.0  # of one experiment on a public page; then it concludes from what it has
_SURE = 0.03  # share of the work after which the time left can be guessed from the time it took


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
    kind, within = ("a number", number_within) if asked.step % 1 else ("a whole number", integer_within)
    if (number := within(value, asked.low, asked.high)) is None:
        raise UserError(f"{asked.label}: {kind} from {asked.low:,g} to {asked.high:,g}.")
    return number


def _text(value: Any, most: int) -> str:
    text = replace_surrogates(value).strip() if isinstance(value, str) else ""
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
    clock.begin()
    clock.concludes = True
    finding = request.experiment.run(
        lm, request.text or None, clock.measure, clock.stop, lambda point: clock.tell(PointMeasured(point))
    )
    yield Found(finding)


def finding_value(finding: Finding) -> dict[str, Any] | None:
    """``checks``, ``notes`` and ``files`` (label, name, type, text) of ``widgets.finding``; None where nothing was
    measured."""
    if not finding.checks:
        return None
    return {
        "checks": [_check(check) for check in finding.checks],
        "notes": [f"{note}." for note in finding.notes],
        "files": _files(finding),
    }


def _check(check: Check) -> dict[str, Any]:
    count = len(check.estimates)
    undecided = count - check.holds - check.opposite
    mean = check.overall
    interval = f"95 % interval {mean.low:.3g} to {mean.high:.3g}"
    return {
        "statement": check.name,
        "outcome": check.outcome,
        "told": f"holds in {check.holds} of {count} {check.cases}, the opposite in {check.opposite}, undecided in "
        f"{undecided}",
        "counts": {"holds": check.holds, "undecided": undecided, "opposite": check.opposite},
        "mean": f"mean {mean.value:.3g}, {interval}, n = {mean.n} {check.clusters}",
    }


def _files(finding: Finding) -> list[dict[str, str]]:
    # Imported here: only after a run is there something to report.
    from ...report.theory import theory_report

    stem = f"theory-{finding.experiment}"
    content = json.dumps(finding.to_json(), ensure_ascii=False, allow_nan=False)
    files = [("JSON", f"{stem}.json", "application/json", content)]
    files += [
        (f"CSV: {table.name}", f"{stem}-{table.name.replace(' ', '-')}.csv", "text/csv", table.to_csv())
        for table in finding.tables
    ]
    files.append(("report", f"{stem}.html", "text/html", theory_report(finding)))
    return [dict(zip(("label", "name", "type", "text"), file, strict=True)) for file in files]


@dataclass
class LabView(JobView):
    """State of an experiment: the points that can be drawn so far, and in the end its finding."""

    queue_reason: ClassVar[str] = "one run at a time, so that none disturbs another"

    points: list[Any] = field(default_factory=list)
    finding: Finding | None = None

    def begin(self) -> None:
        self.say("running", "Starting…", 0.0)

    def receive(self, event: Any) -> None:
        match event:
            case PointMeasured(point):
                self.points.append(point)
            case Found(finding):
                self._find(finding)

    def _find(self, finding: Finding) -> None:
        self.finding = finding
        if self.timed_out:
            self.say("stopped", f"{self.timed_out} Below: what was measured.")
        elif finding.complete:
            self.say("finished", "Finished.")
        elif finding.checks:
            self.say("stopped", "Stopped. Below: what had been measured.")
        else:
            self.say("stopped", "Stopped before enough was measured to say anything.")

    def close(self) -> None:
        self.say("stopped", "Stopped before anything was measured.")

    def out_of_time(self, seconds: float) -> str:
        return "Stopped: the time this page gives to one experiment is up."

    def measuring(self, progress: Progress, seconds: float) -> str:
        """How far it is, and about how long the rest takes if it goes on as it went."""
        done = f"{progress.done:,} of {progress.total:,} {progress.unit}"
        share = progress.done / progress.total
        if share < _SURE:
            return f"Measuring: {done}."
        return f"Measuring: {done}, {wording.time_left(seconds * (1 - share) / share)}."


class LabFrame(Frame[LabView]):
    """The finding and its plots once; until then the curve as it grows."""

    def __init__(self, view: LabView, experiment: str) -> None:
        super().__init__(view)
        self._experiment = EXPERIMENTS[experiment]
        self._plots = PLOTS.get(experiment, ())
        self._drawn: object = None  # what the plots show

    def draw(self) -> Outputs:
        view = self.view
        if view.finding is not None and self._drawn is not view.finding:
            self._drawn = view.finding
            tables = {table.name: table.columns for table in view.finding.tables}
            return {"finding": finding_value(view.finding), **self._draw_plots(tables)}
        if view.finding is None and view.points and self._drawn != len(view.points):
            self._drawn = len(view.points)
            return self._draw_plots({table.name: table.columns for table in self._experiment.live_tables(view.points)})
        return {}

    def _draw_plots(self, tables: Mapping[str, Any]) -> Outputs:
        return {plot.name: value(plot.draw(tables)) for plot in self._plots}
