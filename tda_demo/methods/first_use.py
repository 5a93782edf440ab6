"""What of a method can race on a model that nothing has been calibrated for.

The model's own answers, and the tables made of them, take a large model the better part of an hour. Until they are
there a sequence-level method chooses from the prompt alone: TDA's thresholds come from it too, one CETT for all layers,
and no prior is mixed in. A method that cannot takes its thresholds from a few passages. What was done is told. A small
model is calibrated first, as ever: it takes a minute or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from ..calibration.answers import questions_sha256
from ..calibration.sources import ANSWERS, FEW_PASSAGES, Source, Text
from ..support.progress import Report, silent
from .policy import Policy

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

SMALL = 250e6  # weights of a model that is calibrated before its first race


class Calibrated(Protocol):
    """What of a method (``base.Method``) is asked for here."""

    def bind(self, lm: LoadedModel, report: Report = ..., source: Source = ...) -> Policy: ...

    def without_calibration(self) -> Self: ...

    def without_copies(self) -> Self: ...


M = TypeVar("M", bound=Calibrated)


class NotCalibrated(Exception):
    """A table would have to be made of the model's answers."""


@dataclass(frozen=True)
class Bound(Generic[M]):
    """The ``policy`` of ``method``, the one asked for or what of it needs no calibration, and a ``note`` of that."""

    policy: Policy
    method: M
    note: str = ""


def _refuse(_lm: LoadedModel, _held_out: bool, _report: Report) -> list[Text]:
    raise NotCalibrated


_KEPT_ANSWERS = Source(ANSWERS.name, ANSWERS.unit, _refuse, questions_sha256)  # finds tables, makes none


def bind_at_once(method: M, lm: LoadedModel, report: Report = silent) -> Bound[M]:
    """``method`` bound to ``lm`` without minutes of calibration before.

    Raises:
        UserError: as ``Method.bind``.
    """
    if lm.weight_count < SMALL:
        return Bound(method.bind(lm, report), method)
    try:
        return Bound(method.bind(lm, report, _KEPT_ANSWERS), method)
    except NotCalibrated:
        simpler = method.without_calibration()
        policy = simpler.bind(lm, report, FEW_PASSAGES)
    chosen = "thresholds from a few passages" if simpler == method else "neurons chosen from this prompt alone"
    return Bound(policy, simpler, f"{chosen}: {lm.name} is not calibrated yet")


def is_calibrated(method: Calibrated, lm: LoadedModel) -> bool:
    """Whether ``method`` finds all it needs of ``lm``."""
    try:
        method.without_copies().bind(lm, source=_KEPT_ANSWERS)
    except NotCalibrated:
        return False
    return True


def calibrate(method: Calibrated, lm: LoadedModel, report: Report = silent) -> None:
    """Makes, and keeps, what ``method`` needs of ``lm`` and is not there; goes on where it was broken off."""
    method.without_copies().bind(lm, report)
