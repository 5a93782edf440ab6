"""A small sweep: what a visitor asks, and the job it is: get the models, measure row by row, watch the clock."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

from ...methods import Method
from ...model.precisions import REFERENCE
from ...support.errors import UserError
from ...support.progress import Progress
from ..job import Clock, PageJob
from ..limits import method_class
from ..loader import GivenUp, Models
from ..offers import Offers
from ..zero_gpu import LOADING_SECONDS, GpuNeed

MOST_VALUES = 6
PASSAGES = (2, 12)
PROMPT_TOKENS, SCORE_TOKENS = 128, 64  # of a passage, as in the shipped sweep
SECONDS = 180.0


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
    from ...calibration.documents import passages
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
    texts = passages(held_out=True)[: request.passages]
    name = f"the first {len(texts)} of the project's held-out passages"
    settings = EvaluationSettings(PROMPT_TOKENS, SCORE_TOKENS)
    for row in stream_sweep(reference, lm, request.methods, texts, name, settings, SpeedSettings(prompts=2), report):
        yield RowMeasured(asdict(row))
