"""A view, drawn: values of the page's components, each sent only when it changed, and no oftener than it is worth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import gradio as gr

from .. import wording
from ..components import Outputs, ready
from ..limits import RunRequest
from . import figures
from .stage import stage
from .view import RaceView

if TYPE_CHECKING:
    from ...race import PromptRead

_PLOT_SECONDS = 0.6
_BEFORE = ("empty", "queued", "loading", "failed")
_TONES = {"failed": "error"}


class Frame:
    """Draws one run's ``view`` again and again."""

    def __init__(self, view: RaceView, request: RunRequest) -> None:
        self.view = view
        self.request = request
        self._sent: Outputs = {}
        self._drawn = (0.0, -1)  # when the token map was drawn, and with how many steps

    def outputs(self) -> Outputs:
        """What is new since the last call, by component name."""
        view = self.view
        values: Outputs = {"notice": notice(view)}
        if "stage" in self._sent or view.phase not in _BEFORE:  # the last race stays to be seen until this one begins
            values["stage"] = stage(view)
        if view.prompt is not None:
            values |= self._plots(view.prompt)
        if (result := view.result) is not None:
            values["model_notice"] = ready(result.model, result.precision)
            values["machine"] = wording.machine({"model": result.model, "engine": result.engine, **result.environment})
        new = {name: value for name, value in values.items() if self._sent.get(name) != value}
        self._sent |= new
        return new

    def _plots(self, read: PromptRead) -> Outputs:
        view, kept, d_ff = self.view, read.active.counts(), read.active.d_ff
        values: Outputs = {}
        if "neurons" not in self._sent:
            values["neurons"] = figures.neuron_map([own.cpu().numpy() for own in read.active.indices], d_ff)
            if len(self.request.scale) != len(d_ff):
                values["scale"] = [1.0] * len(d_ff)
        if "layers" not in self._sent or view.over:
            quality = view.result.quality if view.result else None
            values["layers"] = figures.layer_bars(kept, d_ff, quality.cett if quality else [], self.request.cett)
        if self._token_map_is_due():
            values["tokens"] = figures.token_map(
                read.tokens, read.fired, view.tokens, view.fired, kept, d_ff, view.max_new_tokens
            )
        return values

    def _token_map_is_due(self) -> bool:
        seconds, steps = self._drawn
        now, count = time.monotonic(), len(self.view.fired)
        if count == steps or (now - seconds < _PLOT_SECONDS and not self.view.over):
            return False
        self._drawn = (now, count)
        return True


def notice(view: RaceView) -> Outputs:
    return {"text": view.message, "tone": _TONES.get(view.phase, "quiet"), "progress": view.progress}


def buttons(running: bool) -> Outputs:
    return {"run": gr.update(interactive=not running), "stop": gr.update(interactive=running)}
