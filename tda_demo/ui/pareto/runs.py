"""A small sweep: what a visitor asks, the job that measures it row by row, and what its events change on the page."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...methods import Method
from ...model.precision import REFERENCE
from ...support.errors import UserError
from ...support.interruption import GivenUp
from ...support.progress import Progress
from .. import wording
from ..job import Clock, Frame, JobView, PageJob
from ..models import Models
from ..requests import Offers, method_class
from ..visits import Visit
from ..widgets import Outputs
from ..zero_gpu import LOADING_SECONDS, GpuNeed
from . import figures
from .points import points

MOST_VALUES = 6
PASSAGES = (2, 12)
PROMPT_TOKENS, SCORE_TOKENS = 128, 64  # of a passage, as in the shipped sweep
SECONDS = 180.0
_IDENTITY = ("model", "method", "settings", "precision", "tokens_sha256")


@dataclass(frozen=True)
class SweepRequest:
    """``methods``, beside dense, on the first ``passages``; ``model`` and ``precision`` None are the defaults."""

    methods: tuple[Method, ...]
    passages: int
    model: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class RowMeasured:
    """An event: one more row, as tidy fields of ``evaluate.sweep_table.SweepRow``."""

    row: dict[str, Any]


def parse_sweep(offers: Offers, *, method: Any, values: Any, passages: Any, model: Any, precision: Any) -> SweepRequest:
    """Whatever a browser sent, as a request: ``method`` at every one of ``values`` of its dial.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    low, high = PASSAGES
    if not isinstance(passages, int | float) or not low <= passages <= high:
        raise UserError(f"The number of passages must be from {low} to {high}.")
    kind = method_class(method)
    return SweepRequest(
        methods=tuple(kind(**{kind.dial.setting: value}) for value in _parse_values(values)),
        passages=int(passages),
        model=offers.model(model),
        precision=offers.precision(precision),
    )


def _parse_values(text: Any) -> tuple[float, ...]:
    parts = str(text or "").replace(",", " ").replace(";", " ").split()
    try:
        values = tuple(dict.fromkeys(float(part) for part in parts))
    except ValueError:
        raise UserError("Values: write numbers such as 0.05, 0.1, 0.2.") from None
    if not 1 <= len(values) <= MOST_VALUES:
        raise UserError(f"Values: write 1 to {MOST_VALUES} different numbers such as 0.05, 0.1, 0.2.")
    return values


def sweep_job(request: SweepRequest, seconds: float = SECONDS) -> PageJob[SweepRequest]:
    """Its need of a GPU is made of allowances: for two models, and for every row its passages and races."""
    rows = (1 + len(request.methods)) * (10 + request.passages)
    return PageJob(measure_sweep, request, seconds, GpuNeed(request.model, 2 * LOADING_SECONDS + min(seconds, rows)))


def measure_sweep(models: Models, request: SweepRequest, clock: Clock) -> Generator[RowMeasured]:
    """Row by row; stopped, it gives up the row it is at.

    Raises:
        UserError: the model cannot be had.
    """
    # Imported here, in the worker's thread: torch must not hold up the page.
    from ...calibration.documents import held_out_passages
    from ...evaluate.evaluation import EvaluationSettings
    from ...evaluate.speed import SpeedSettings
    from ...evaluate.sweep import stream_sweep

    def report(progress: Progress) -> None:
        if progress.stage != "Sweeping":
            return clock.load(progress)
        clock.measure(progress)
        if clock.stop.is_set():
            raise GivenUp

    reference = models.get(request.model, REFERENCE, clock.load)
    lm = models.get(request.model, request.precision, clock.load)
    clock.begin()
    texts = held_out_passages().documents[: request.passages]
    name = f"the first {len(texts)} of the project's held-out passages"
    settings = EvaluationSettings(PROMPT_TOKENS, SCORE_TOKENS)
    for row in stream_sweep(reference, lm, request.methods, texts, name, settings, SpeedSettings(prompts=2), report):
        yield RowMeasured(asdict(row))


@dataclass
class SweepView(JobView):
    """State of a sweep of ``expected`` rows."""

    expected: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def receive(self, event: Any) -> None:
        if isinstance(event, RowMeasured):
            self.rows.append(event.row)

    def close(self) -> None:
        count = wording.count(len(self.rows), "point")
        if len(self.rows) == self.expected:
            self.say("finished", f"Finished: {count} more on the plot.")
        else:
            self.say("stopped", f"{self.timed_out or 'Stopped.'} {count} of {self.expected} measured.")

    def measuring(self, progress: Progress, seconds: float) -> str:
        done, total = progress.done, progress.total
        left = f", {wording.rough_duration(seconds / done * (total - done))} left" if done else ""
        return f"Measuring: {len(self.rows)} of {wording.count(self.expected, 'point')}{left}."

    def out_of_time(self, seconds: float) -> str:
        return f"Stopped after {seconds:g} s, the most this page gives to one sweep."


class SweepFrame(Frame[SweepView]):
    """The rows join those of the visit, and are plotted with them."""

    def __init__(self, view: SweepView) -> None:
        super().__init__(view)
        self._kept = 0  # rows
        self._drawn: Outputs = {}

    def remember(self, visit: Visit) -> None:
        if new := self.view.rows[self._kept :]:
            keep_rows(visit.rows, new)
            self._kept += len(new)
            self._drawn = {"plot": visit_plot(visit)}

    def draw(self) -> Outputs:
        return self._drawn


def visit_plot(visit: Visit) -> dict[str, Any] | None:
    """Everything there is to see now."""
    return figures.plot_value(points(visit.rows, visit.race))


def keep_rows(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Adds ``new`` to a visit's ``rows``; a point measured again takes the place of the older one."""
    names = {_identity(row) for row in new}
    rows[:] = [row for row in rows if _identity(row) not in names] + new


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _IDENTITY)
