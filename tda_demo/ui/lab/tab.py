"""The Lab tab: the model, and a panel for each claim."""

from __future__ import annotations

import gradio as gr

from ...theory import EXPERIMENTS
from ..offers import EMBEDDED
from ..service import Service
from .panel import panel

_INTRO = """<p class="lab-intro">The paper explains sparsity by the claims below. Each one is turned into a prediction
here, measured on the model you choose, and judged by what was measured: supported, contradicted, mixed, or no
effect.</p>"""


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
    with gr.Tabs(elem_id="claims"):
        for experiment in EXPERIMENTS.values():
            with gr.Tab(experiment.title, id=experiment.name, elem_id=f"claim-{experiment.name}"):
                panel(service, experiment, model)
