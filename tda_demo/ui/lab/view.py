"""An experiment as the page sees it: what its events change, and the finding and plots they are drawn as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ...support.progress import Progress
from ...theory import EXPERIMENTS
from .. import wording
from ..components import Outputs
from ..job import Frame, JobView
from .figures import PLOTS
from .figures.chart import value
from .findings import shown
from .runs import Found, PointMeasured

if TYPE_CHECKING:
    from ...theory.findings import Finding

_SURE = 0.03  # share of the work after which what is left can be told from what it took


@dataclass
class LabView(JobView):
    """State of an experiment: the points that can be drawn so far, and in the end its finding."""

    turns: ClassVar[str] = "one run at a time, so that none disturbs another"

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
            return {"finding": shown(view.finding), **self._draw_plots(tables)}
        if view.finding is None and view.points and self._drawn != len(view.points):
            self._drawn = len(view.points)
            return self._draw_plots({table.name: table.columns for table in self._experiment.live_tables(view.points)})
        return {}

    def _draw_plots(self, tables: Mapping[str, Any]) -> Outputs:
        return {plot.name: value(plot.draw(tables)) for plot in self._plots}
