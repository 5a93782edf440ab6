"""A view, drawn: values of the page's components, each sent only when it changed, and no oftener than it is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import gradio as gr

from .. import wording
from ..components import Outputs, ready
from . import figures
from .stage import stage
from .view import RaceView

if TYPE_CHECKING:
    from ...race import PromptRead

_PLOT_SECONDS = 0.6
_BEFORE = ("empty", "queued", "loading", "failed")
_TONES = {"failed": "error"}


class Frame:
    """Draws one run's ``view`` again and again. ``shown`` is how many sliders each equaliser of the page has."""

    def __init__(self, view: RaceView, shown: dict[str, int]) -> None:
        self.view = view
        self.shown = shown
        self._sent: Outputs = {}
        self._drawn = (0.0, -1)  # when the token map was drawn, and with how many steps

    def outputs(self) -> Outputs:
        """What is new since the last call, by component name."""
        view = self.view
        values: Outputs = {"notice": notice(view)}
        if "stage" in self._sent or view.phase not in _BEFORE:  # the last race stays to be seen until this one begins
            values["stage"] = stage(view)
        if view.ready is not None:
            layers = len(view.ready.d_ff)
            values |= {name: [1.0] * layers for name, count in self.shown.items() if count != layers}
        for found in (each.found for each in view.methods if each.found):
            values[f"{found.method}.{found.setting}"] = round(found.value, 3)
        if view.sparse.prompt is not None and view.ready is not None:
            values |= self._plots(view.sparse.prompt, view.ready.d_ff)
        if (result := view.result) is not None:
            values["model_notice"] = ready(result.model, result.precision)
            values["machine"] = wording.machine({"model": result.model, "engine": result.engine, **result.environment})
        new = {name: value for name, value in values.items() if self._sent.get(name) != value}
        self._sent |= new
        return new

    def _plots(self, read: PromptRead, d_ff: Sequence[int]) -> Outputs:
        view, own = self.view, self.view.sparse
        values: Outputs = {}
        if "neurons" not in self._sent:
            values["neurons"] = _neurons(own.name, read, d_ff)
        due = self._token_map_is_due()
        if own.kept is not None and ("layers" not in self._sent or view.over or (due and read.active is None)):
            cett = own.quality.cett if own.quality else []
            values["layers"] = figures.layer_bars(own.kept.tolist(), d_ff, cett, own.cett_target)
        if due:
            kept = read.active.counts() if read.active else None
            most = view.request.max_new_tokens if view.request else 0
            values["tokens"] = figures.token_map(
                read.tokens, read.fired, own.written, own.fired, kept, d_ff, most, own.name
            )
        return values

    def _token_map_is_due(self) -> bool:
        seconds, steps = self._drawn
        now, count = time.monotonic(), len(self.view.sparse.fired)
        if count == steps or (now - seconds < _PLOT_SECONDS and not self.view.over):
            return False
        self._drawn = (now, count)
        return True


def _neurons(name: str, read: PromptRead, d_ff: Sequence[int]) -> Outputs:
    if read.active is None:
        return {"ghost": f"{name} chooses its neurons anew at every step: there is no one set to draw."}
    return figures.neuron_map([own.cpu().numpy() for own in read.active.indices], d_ff)


def notice(view: RaceView) -> Outputs:
    return {"text": view.message, "tone": _TONES.get(view.phase, "quiet"), "progress": view.progress}


def buttons(running: bool) -> Outputs:
    return {"run": gr.update(interactive=not running), "stop": gr.update(interactive=running)}
