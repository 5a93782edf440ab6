"""What the page knows of one experiment: a reducer from events to state. It knows neither gradio nor a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import wording
from ..loader import Loading
from ..worker import Closed, Failed, Waiting
from .runs import Found, Measuring, Point

if TYPE_CHECKING:
    from ...progress import Progress
    from ...theory.findings import Finding
    from ...theory.training import TrainingPoint

_OVER = ("finished", "stopped", "failed")
_SURE = 0.03  # share of the work after which what is left can be told from what it took


@dataclass
class LabView:
    """State of one run; ``apply`` moves it on.

    ``phase`` is one of empty, queued, loading, running, finished, stopped, failed; ``message`` says it in a sentence;
    ``progress`` is 0..1 where that is known.
    """

    phase: str = "empty"
    message: str = ""
    progress: float | None = None
    points: list[TrainingPoint] = field(default_factory=list)
    finding: Finding | None = None

    @property
    def over(self) -> bool:
        return self.phase in _OVER

    def apply(self, event: Any) -> None:
        match event:
            case Measuring(progress, seconds):
                self._say("running", measuring(progress, seconds), progress.done / progress.total)
            case Point(point):
                self.points.append(point)
            case Found():
                self._find(event)
            case Waiting(place):
                self._say("queued", _waiting(place)) if place else self._say("running", "Starting…", 0.0)
            case Loading(progress):
                share = progress.done / progress.total if progress.total else None
                self._say("loading", wording.loading(progress), share)
            case Failed(message):
                self._say("failed", message)
            case Closed() if not self.over:
                self._say("stopped", "Stopped before anything was measured.")

    def _say(self, phase: str, message: str, progress: float | None = None) -> None:
        self.phase, self.message, self.progress = phase, message, progress

    def _find(self, event: Found) -> None:
        self.finding = event.finding
        if event.timed_out:
            self._say("stopped", "Stopped: the time this page gives to one experiment is up. Below: what was measured.")
        elif event.finding.complete:
            self._say("finished", "Finished.")
        elif event.finding.checks:
            self._say("stopped", "Stopped. Below: what had been measured.")
        else:
            self._say("stopped", "Stopped before enough was measured to say anything.")


def measuring(progress: Progress, seconds: float) -> str:
    """How far it is, and about how long the rest takes if it goes on as it went."""
    done = f"{progress.done:,} of {progress.total:,} {progress.unit}"
    share = progress.done / progress.total
    if share < _SURE:
        return f"Measuring: {done}."
    return f"Measuring: {done}, {_left(seconds * (1 - share) / share)}."


def _left(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def _waiting(place: int) -> str:
    return f"You are {wording.ordinal(place + 1)} in line: one run at a time, so that none disturbs another."
