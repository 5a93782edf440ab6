"""A race, drawn: values of the page's components, no oftener than they are worth; and a race for the API, as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...report.race import RaceRecord, trace_of
from ...support.errors import UserError
from .. import wording
from ..job import Frame, follow_job
from ..requests import parse_request
from ..service import Service
from ..visits import Visit
from ..widgets import Outputs, ready
from . import figures
from .runs import race_job
from .stage import facts_of, stage
from .view import RaceView

if TYPE_CHECKING:
    from ...race import PromptRead

_PLOT_SECONDS = 0.6
_BEFORE = ("empty", "queued", "loading", "failed")


class RaceFrame(Frame[RaceView]):
    """``factor_counts`` is how many factors each setting that has one a layer has on the page."""

    def __init__(self, view: RaceView, factor_counts: dict[str, int]) -> None:
        super().__init__(view)
        self.factor_counts = factor_counts
        self._drawn = (0.0, -1)  # when the layers' bars were drawn, and with how many steps

    def remember(self, visit: Visit) -> None:
        """Keeps a race that got as far as a result, for its report and for the other tabs."""
        view, sparse = self.view, self.view.sparse
        result, request = view.result, view.request
        if result is None or sparse.prompt is None or view.ready is None or request is None:
            return
        decoding = {name: getattr(request, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
        trace = trace_of(sparse.prompt, view.ready.d_ff, sparse.pieces[1:], sparse.fired)
        share, rival_share = (arm.mlp_share(result.dense.weight_bytes) for arm in (sparse, view.rival))
        visit.race = RaceRecord(request.prompt, decoding, result, trace, share, rival_mlp_share=rival_share)

    def draw(self) -> Outputs:
        view = self.view
        values: Outputs = {}
        if "stage" in self.sent or view.phase not in _BEFORE:  # the last race stays to be seen until this one begins
            values["stage"] = stage(view, setting_label(view))
        if view.ready is not None:
            layers = len(view.ready.d_ff)
            values |= {name: [1.0] * layers for name, count in self.factor_counts.items() if count != layers}
        for arm in view.methods:
            if arm.found is not None:
                values[f"{arm.found.method.name}.{arm.found.setting}"] = round(arm.found.value, 3)
        if view.sparse.prompt is not None and view.ready is not None:
            values |= self._plots(view.sparse.prompt, view.ready.d_ff)
        if (result := view.result) is not None:
            values["model_notice"] = ready(result.model, result.precision)
            values["machine"] = [
                *facts_of(view),
                *wording.machine({"model": result.model, "engine": result.engine, **result.environment}),
            ]
        return values

    def _plots(self, read: PromptRead, d_ff: Sequence[int]) -> Outputs:
        view, sparse = self.view, self.view.sparse
        values: Outputs = {}
        if "neurons" not in self.sent:
            values["neurons"] = _neurons(sparse.name, read, d_ff)
        if sparse.kept is not None and ("layers" not in self.sent or view.over or self._bars_are_due()):
            cett = sparse.quality.cett if sparse.quality else []
            values["layers"] = figures.layer_bars(sparse.kept.tolist(), d_ff, cett, sparse.cett_target)
        return values

    def _bars_are_due(self) -> bool:
        seconds, steps = self._drawn
        now, count = time.monotonic(), len(self.view.sparse.fired)
        prompt = self.view.sparse.prompt
        if prompt is None or prompt.kept is not None or count == steps or now - seconds < _PLOT_SECONDS:
            return False
        self._drawn = (now, count)
        return True


def setting_label(view: RaceView) -> str:
    """``TDA 0.7``, ``TDA 0.7 and GRIFFIN 0.5``: what is raced, by the values of its dials."""
    methods = [arm.method for arm in view.methods if arm.method is not None]
    return " and ".join(f"{type(method).__name__} {getattr(method, method.dial.setting):.3g}" for method in methods)


def _neurons(name: str, read: PromptRead, d_ff: Sequence[int]) -> Outputs:
    if read.active is None:
        return {"ghost": f"{name} chooses its neurons anew at every step: there is no one set to draw."}
    return figures.neuron_map([indices.cpu().numpy() for indices in read.active.indices], d_ff)


def race_json(service: Service, owner: str, wishes: dict[str, Any]) -> dict[str, Any]:
    """A race for the API: its JSON.

    Raises:
        UserError: whatever went wrong, in one sentence.
    """
    job = race_job(parse_request(service.offers, **wishes, limits=service.limits), service.limits)
    view = RaceView(job.request)
    for _ in follow_job(service, owner, job, view):
        pass
    if view.result is None:
        raise UserError(view.message)
    return view.result.to_json()
