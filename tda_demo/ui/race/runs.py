"""One race of the page or of the API, as a job for the worker: get the model, race, watch the clock."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...methods import Method
from ...support.errors import UserError
from ...support.progress import Progress
from ..job import Clock, PageJob
from ..models import Models
from ..requests import Budget, Limits, RunRequest
from ..zero_gpu import LOADING_SECONDS, GpuNeed

if TYPE_CHECKING:
    from ...model.loading import LoadedModel
    from ...support.progress import Report


@dataclass(frozen=True)
class Ready:
    """An event: the model is there. ``d_ff`` of every layer, and the bytes of the MLP weights a dense step reads.

    ``calibrating``: how far its calibration is, which goes on while nobody races.
    """

    d_ff: tuple[int, ...]
    mlp_bytes: float
    calibrating: Progress | None = None


@dataclass(frozen=True)
class SettingFound:
    """An event: a ``budget`` turns the dial of a method, which is ``method`` from now on.

    There the calibration passages cost ``kl`` nats per token and read ``mlp_share`` 0..1 of the MLP weight bytes.
    """

    method: Method
    budget: Budget
    kl: float
    mlp_share: float

    @property
    def setting(self) -> str:
        return self.method.dial.setting

    @property
    def value(self) -> float:
        return getattr(self.method, self.setting)


def race_job(request: RunRequest, limits: Limits) -> PageJob[RunRequest]:
    """Its need of a GPU is made of allowances, not measurements: the less is asked for, the sooner one is lent."""
    methods = 1 if request.rival is None else 2
    calibration = 30 * methods * (1 if request.budget is None else 2)
    decoding = min(limits.seconds_per_run, 0.05 * request.max_new_tokens * (1 + methods))
    need = GpuNeed(request.model, LOADING_SECONDS + calibration + decoding)
    return PageJob(measure_race, request, limits.seconds_per_run, need)


def measure_race(models: Models, request: RunRequest, clock: Clock) -> Generator[Any]:
    """``Ready``, for a budget ``SettingFound`` of every method, then the events of the race.

    Raises:
        UserError: the model cannot be had; the prompt has more tokens than the request may; or it, a setting or the
            budget does not fit the model.
    """
    lm = models.get(request.model, request.precision, clock.load)
    clock.begin()
    _check_length(lm, request.prompt, request.most_prompt_tokens)
    # Imported here, in the worker's thread: torch must not hold up the page.
    from ...decode.choose import step_bytes
    from ...race import RaceSettings, race

    widths = tuple(block.d_ff for block in lm.blocks)
    yield Ready(widths, step_bytes(lm).mlp, models.calibrating.get(lm.fingerprint))
    method, rival = request.method, request.rival
    if request.budget is not None:
        yield (found := _find_setting(lm, method, request.budget, clock.load))
        method = found.method
        if rival is not None:
            yield (found := _find_setting(lm, rival, request.budget, clock.load))
            rival = found.method
    settings = RaceSettings(request.max_new_tokens, request.temperature, request.top_p, request.seed)
    for event in race(lm, method, request.prompt, settings, clock.stop, clock.load, rival):
        yield event
        clock.event()


def _check_length(lm: LoadedModel, prompt: str, most: int) -> None:
    tokens = len(lm.prompt_ids(prompt))
    if tokens > most:
        raise UserError(
            f"The prompt is {tokens:,} tokens long for {lm.name}; this page takes at most {most:,}: shorten it."
        )


def _find_setting(lm: LoadedModel, method: Method, budget: Budget, report: Report) -> SettingFound:
    from ...evaluate.budget import quality_curve, with_dial_at

    curve = quality_curve(lm, method, report=report)
    value = curve.value_for_kl(budget.most) if budget.of == "kl" else curve.value_for_mlp_share(budget.most)
    method = with_dial_at(method, value)
    value = getattr(method, curve.setting)
    return SettingFound(method, budget, curve.kl_at(value), curve.mlp_share_at(value))
