"""The tab: what stands where, and which handler each part calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from ...methods import METHODS, Method
from ...methods.base import Dial
from ...support.errors import UserError
from ..job import JobAndFrame, wire
from ..models import EMBEDDED
from ..requests import AUTOMATIC, Offers, method_class
from ..service import Service
from ..visits import ReportContent, Visit, owner, report_buttons
from ..widgets import EVENT, facts, notice, pareto_plot
from . import figures
from .points import points, shipped_rows
from .runs import PASSAGES, SweepFrame, SweepView, parse_sweep, sweep_job, visit_plot

Components = dict[str, Any]

_WISHES = ("method", "values", "passages", "model", "precision")
_LOOK_SECONDS = 0.5


def build(page: gr.Blocks, service: Service) -> None:
    """Puts the tab's components into ``page``, wired to ``service``."""
    parts: Components = {"plot": pareto_plot(figures.plot_value(points([], None)), elem_id="pareto-plot")}
    facts(value=_provenance(), elem_id="pareto-source")
    parts |= _controls(service.offers)
    report_buttons(service.visits, "sweep", _report)
    _wire(service, parts)


def _provenance() -> list[list[str]]:
    """Where the shipped points come from."""
    rows = shipped_rows()
    if not rows:
        return []
    first = rows[0]
    timed = next((row["speedup_n"] for row in rows if row["speedup_n"]), None)
    known = [
        ["shipped sweep of", first["model"]],
        ["text", f"{first['text']}, {first['scored_tokens']:,} scored tokens of {first['documents']} texts"],
        ["machine", f"{first['machine']}, {first['threads']} threads, torch {first['torch']}"],
        ["measured on", first["date"]],
    ]
    return [*known, ["times", f"n = {timed} pairs of 8 steps a point, dense and sparse in turn"]] if timed else known


def _controls(offers: Offers) -> Components:
    gr.HTML(
        '<h2 class="section-title">Measure points of your own</h2><p class="section-lead">Every value is scored on the '
        "project's held-out passages against the dense float32 model, and timed against the dense arm. Points appear "
        "as they are measured and stay until you leave.</p>",
        apply_default_css=False,
        js_on_load=None,
    )
    with gr.Row(elem_id="pareto-controls"):
        parts = {
            "method": gr.Dropdown(
                [(figures.method_name(name), name) for name in METHODS],
                value="tda",
                label="Method",
                elem_id="pareto-method",
                min_width=140,
            ),
            "values": gr.Textbox(
                **_values(METHODS["tda"]),
                elem_id="pareto-values",
                min_width=220,
            ),
            "passages": gr.Slider(*PASSAGES, 4, step=1, label="Passages", elem_id="pareto-passages", min_width=180),
            "model": gr.Dropdown(
                list(offers.models),
                value=EMBEDDED,
                label="Model",
                allow_custom_value=offers.any_model,
                elem_id="pareto-model",
                min_width=200,
            ),
            "precision": gr.Dropdown(
                list(offers.precisions), value=AUTOMATIC, label="Precision", elem_id="pareto-precision", min_width=130
            ),
        }
    with gr.Row(elem_id="pareto-actions"):
        parts["run"] = gr.Button("Measure", variant="primary", elem_id="pareto-run", min_width=120, scale=0)
        parts["stop"] = gr.Button("Stop", interactive=False, elem_id="pareto-stop", min_width=90, scale=0)
        parts["notice"] = notice(elem_id="pareto-notice")
    return parts


def _values(method: type[Method]) -> dict[str, Any]:
    """The box of values: those to begin with, and what they are values of. The dense end is measured anyway."""
    dial = method.dial
    return {
        "value": ", ".join(f"{value:g}" for value in first_values(dial)),
        "label": f"Values of {dial.setting}",
        "info": f"From {dial.dense:g}, which is exact, to {dial.sparsest:g}.",
    }


def first_values(dial: Dial) -> tuple[float, ...]:
    return tuple(round(dial.dense + share * (dial.sparsest - dial.dense), 2) for share in (0.08, 0.17, 0.33, 0.5))


def _wire(service: Service, parts: Components) -> None:
    def start(*values: Any) -> JobAndFrame:
        job = sweep_job(parse_sweep(service.offers, **dict(zip(_WISHES, values, strict=True))))
        return job, SweepFrame(SweepView(1 + len(job.request.methods)))

    async def look(request: gr.Request) -> AsyncIterator[Any]:
        """The plot as the tab is opened, and again should a race that is under way end."""
        session = owner(request)
        last_race = service.visits.of(session).race
        yield visit_plot(service.visits.of(session))
        while service.worker.busy(session):
            await asyncio.sleep(_LOOK_SECONDS)
            if (race := service.visits.of(session).race) is not last_race:
                last_race = race
                yield visit_plot(service.visits.of(session))

    def dial(method: str) -> Any:
        try:
            return gr.update(**_values(method_class(method)))
        except UserError:  # no such method: nothing on the page asks for one
            return gr.skip()

    tab = parts["plot"].parent
    assert isinstance(tab, gr.Tab), "a tab is built inside its gr.Tab"
    tab.select(look, None, parts["plot"], **EVENT)
    parts["method"].input(dial, parts["method"], parts["values"], **EVENT)
    wire(service, parts, [parts[name] for name in _WISHES], start)


def _report(visit: Visit) -> ReportContent:
    from ...report import sweep_report

    rows = [dict(point.fields) for point in points(visit.rows, visit.race)]
    if not rows:
        raise UserError("Nothing is measured yet: run a sweep first.")
    return sweep_report(rows), rows
