"""A view, drawn: values of a panel's components, each sent only when it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ...theory import EXPERIMENTS
from ..components import Outputs
from .figures import PLOTS
from .figures.chart import Plot, value
from .findings import shown
from .view import LabView

_TONES = {"failed": "error"}


class Frame:
    """Draws one run's ``view`` again and again."""

    def __init__(self, view: LabView, experiment: str) -> None:
        self.view = view
        self.experiment = experiment
        self.plots: Sequence[Plot] = PLOTS.get(experiment, ())
        self._drawn: object = None  # what the plots show

    def outputs(self) -> Outputs:
        """What is new since the last call, by component name."""
        view = self.view
        values: Outputs = {"notice": notice(view)}
        if view.finding is not None and self._drawn is not view.finding:
            self._drawn = view.finding
            tables = {table.name: table.columns for table in view.finding.tables}
            values |= {"finding": shown(view.finding), **self._plots(tables)}
        elif view.finding is None and view.points and self._drawn != len(view.points):
            self._drawn = len(view.points)
            tables = EXPERIMENTS[self.experiment].live_tables(view.points)
            values |= self._plots({table.name: table.columns for table in tables})
        return values

    def _plots(self, tables: Mapping[str, Any]) -> Outputs:
        return {plot.name: value(plot.draw(tables)) for plot in self.plots}


def notice(view: LabView) -> Outputs:
    return {"text": view.message, "tone": _TONES.get(view.phase, "quiet"), "progress": view.progress}


def buttons(running: bool) -> Outputs:
    return {"run": gr.update(interactive=not running), "stop": gr.update(interactive=running)}
