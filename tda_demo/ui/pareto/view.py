"""What the page knows of one sweep: a reducer from events to state. It knows neither gradio nor a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import wording
from ..loader import Loading
from ..worker import Closed, Failed, Waiting
from .runs import Measured, Measuring, TimedOut

_OVER = ("finished", "stopped", "failed")


@dataclass
class SweepView:
    """State of a sweep of ``expected`` rows; ``apply`` moves it on.

    ``phase`` is one of empty, queued, loading, running, finished, stopped, failed; ``message`` says it in a sentence;
    ``progress`` is 0..1 where it is known.
    """

    expected: int = 0
    phase: str = "empty"
    message: str = ""
    progress: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.phase in _OVER

    def apply(self, event: Any) -> None:
        match event:
            case Waiting(place):
                self._say("queued", wording.waiting(place)) if place else self._say("loading", "Getting ready…")
            case Loading(progress):
                share = progress.done / progress.total if progress.total else None
                self._say("loading", wording.loading(progress), share)
            case Measuring(done, total, seconds):
                left = f", {wording.remaining(seconds / done * (total - done))} left" if done else ""
                said = f"Measuring: {len(self.rows)} of {wording.count(self.expected, 'point')}{left}."
                self._say("running", said, done / total)
            case Measured(row):
                self.rows.append(row)
            case TimedOut(seconds):
                self._say(
                    "stopped", f"Stopped after {seconds:g} s, the most this page gives to one sweep. {self._kept()}"
                )
            case Failed(message):
                self._say("failed", message)
            case Closed() if not self.over:
                if len(self.rows) == self.expected:
                    self._say("finished", f"Finished: {wording.count(len(self.rows), 'point')} more on the plot.")
                else:
                    self._say("stopped", f"Stopped. {self._kept()}")

    def _kept(self) -> str:
        return f"{wording.count(len(self.rows), 'point')} of {self.expected} measured."

    def _say(self, phase: str, message: str, progress: float | None = None) -> None:
        self.phase, self.message, self.progress = phase, message, progress
