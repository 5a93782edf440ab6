"""One claim: what it says, what a visitor sets, and where the finding and its plots stand."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from ...theory import Experiment
from ..components import EVENT, finding, in_order, live_plot, notice
from ..service import Service, owner
from . import handlers
from .figures import PLOTS

_TWO_COLUMNS = 2


def panel(service: Service, experiment: type[Experiment], model: gr.Dropdown) -> None:
    """Puts the experiment's components here, wired to ``service``."""
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
    names = tuple(parts)

    def run(request: gr.Request, chosen: str, typed: str, *values: Any) -> Iterator[list[Any]]:
        wishes = {"sizes": dict(zip(experiment.number_inputs(), values, strict=True)), "text": typed, "model": chosen}
        for outputs in handlers.measure(service, owner(request), experiment, **wishes):
            yield in_order(names, outputs)

    parts["run"].click(run, [model, text, *sizes], list(parts.values()), **EVENT)
    parts["stop"].click(service.stop, queue=False, **EVENT)


def _claim(experiment: type[Experiment]) -> str:
    claim = experiment.claim
    return (
        f'<div class="claim"><h3>Claim</h3><p>{escape(claim.statement)}</p>'
        f"<h3>Prediction</h3><p>{escape(claim.prediction)}</p></div>"
    )


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
