"""A sweep as the page sees it: what its events change, and the plot they are drawn in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...support.progress import Progress
from .. import wording
from ..components import Outputs
from ..job import Frame, JobView
from ..visits import Visit
from . import figures
from .points import points
from .runs import RowMeasured

_IDENTITY = ("model", "method", "settings", "precision", "tokens_sha256")


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
        left = f", {wording.remaining(seconds / done * (total - done))} left" if done else ""
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
            self._drawn = {"plot": plot(visit)}

    def draw(self) -> Outputs:
        return self._drawn


def plot(visit: Visit) -> dict[str, Any] | None:
    """Everything there is to see now."""
    return figures.plot(points(visit.rows, visit.race))


def keep_rows(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Adds ``new`` to a visit's ``rows``; a point measured again takes the place of the older one."""
    names = {_identity(row) for row in new}
    rows[:] = [row for row in rows if _identity(row) not in names] + new


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _IDENTITY)
