"""The Lab tab: the model, and for each claim a panel: what it says, what a visitor sets, the finding and its plots."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from ...theory import EXPERIMENTS, Experiment
from ..job import JobAndFrame, wire
from ..models import EMBEDDED
from ..service import Service
from ..visits import owner
from ..widgets import EVENT, finding, live_plot, notice
from .figures import PLOTS
from .runs import LabFrame, LabView, lab_job, parse_experiment
from .shipped import opening

_INTRO = """<p class="lab-intro">The paper explains sparsity by the claims below. Each one is turned into a prediction
here, measured on the model you choose, and judged by what was measured: supported, contradicted, mixed, or no
effect.</p>"""
_TWO_COLUMNS = 2


def panel(service: Service, experiment: type[Experiment], model: gr.Dropdown) -> dict[str, Any]:
    """Puts the experiment's components here, wired to ``service``; what a run draws, by name."""
    name = experiment.name
    gr.HTML(_claim(experiment), apply_default_css=False, js_on_load=None)
    sizes = _sizes(experiment)
    text = _text(experiment, service.limits.prompt_characters)
    with gr.Row(elem_classes="lab-actions"):
        parts: dict[str, Any] = {
            "run": gr.Button("Measure", variant="primary", elem_id=f"{name}-run", min_width=120, scale=0),
            "stop": gr.Button("Stop", interactive=False, elem_id=f"{name}-stop", min_width=90, scale=0),
            "notice": notice(
                value={"text": f"The default size takes {experiment.duration}."},
                elem_id=f"{name}-notice",
                elem_classes="lab-notice",
            ),
        }
    parts["finding"] = finding(elem_id=f"{name}-finding")
    parts |= _plots(name)

    def start(chosen: str, typed: str, *values: Any) -> JobAndFrame:
        wishes = {"sizes": dict(zip(experiment.number_inputs(), values, strict=True)), "text": typed, "model": chosen}
        job = lab_job(parse_experiment(experiment, service.offers, service.limits, **wishes))
        return job, LabFrame(LabView(), name)

    wire(service, parts, [model, text, *sizes], start)
    return parts


def _claim(experiment: type[Experiment]) -> str:
    claim = experiment.claim
    told = {"Claim": claim.statement, "Prediction": claim.prediction, "Symbols": claim.symbols}
    rows = (f"<h2>{name}</h2><p>{escape(text)}</p>" for name, text in told.items() if text)
    return f'<div class="claim">{"".join(rows)}</div>'


def _sizes(experiment: type[Experiment]) -> list[gr.Number]:
    defaults = experiment.defaults()
    with gr.Row(elem_classes="lab-sizes"):
        return [
            gr.Number(
                defaults[name],
                label=asked.label,
                info=f"{asked.low:,g} to {asked.high:,.10g}",
                precision=0 if asked.step >= 1 else None,
                step=asked.step,
                min_width=150,
                elem_id=f"{experiment.name}-{name}",
            )
            for name, asked in experiment.number_inputs().items()
        ]


def _text(experiment: type[Experiment], most: int) -> gr.Textbox:
    return gr.Textbox(
        label="Your own text (optional)",
        info=experiment.text_use,
        placeholder=f"Left empty, the project's own texts are read. At most {most:,} characters.",
        lines=2,
        max_lines=8,
        visible=bool(experiment.text_use),
        elem_id=f"{experiment.name}-text",
    )


def _plots(name: str) -> dict[str, gr.HTML]:
    plots = PLOTS.get(name, ())
    parts = {}
    for start in range(0, len(plots), _TWO_COLUMNS):
        with gr.Row(elem_classes="lab-plots"):
            for plot in plots[start : start + _TWO_COLUMNS]:
                with gr.Column(min_width=320):
                    parts[plot.name] = live_plot(
                        plot.title,
                        plot.subtitle,
                        plot.ghost,
                        kind=f"{name}-{plot.name}",
                        views=plot.views,
                        elem_id=f"{name}-{plot.name}",
                    )
    return parts


def build(page: gr.Blocks, service: Service) -> None:
    """Puts the tab's components into ``page``, wired to ``service``."""
    with gr.Row(elem_id="lab-head"):
        gr.HTML(_INTRO, apply_default_css=False, js_on_load=None)
        model = gr.Dropdown(
            list(service.offers.models),
            value=EMBEDDED,
            label="Model",
            allow_custom_value=service.offers.any_model,
            elem_id="lab-model",
            min_width=260,
            scale=0,
        )
    panels: dict[str, dict[str, Any]] = {}
    with gr.Tabs(elem_id="claims"):
        for experiment in EXPERIMENTS.values():
            with gr.Tab(experiment.title, id=experiment.name, elem_id=f"claim-{experiment.name}"):
                panels[experiment.name] = panel(service, experiment, model)
    _open_with_what_ships(service, model, panels)


def _open_with_what_ships(service: Service, model: gr.Dropdown, panels: dict[str, dict[str, Any]]) -> None:
    """Fills the panels as the lab is opened for the first time."""
    parts = [(name, part) for name, drawn in panels.items() for part in drawn if part not in ("run", "stop")]

    def look(request: gr.Request) -> list[Any]:
        visit = service.visits.of(owner(request))
        filled = {} if visit.lab_opened else {name: opening(name) for name in panels}
        visit.lab_opened = True
        return [filled.get(name, {}).get(part, gr.skip()) for name, part in parts]

    tabs = model.parent
    while tabs is not None and not isinstance(tabs, gr.Tab):
        tabs = tabs.parent
    assert tabs is not None, "the lab is built inside its gr.Tab"
    tabs.select(look, None, [panels[name][part] for name, part in parts], **EVENT)
