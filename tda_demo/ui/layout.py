"""The page: its masthead and its tabs, each in a folder of its own."""

from __future__ import annotations

import gradio as gr

from . import lab, pareto, race
from .components import serve_scripts
from .service import Service

TITLE = "TDA race"
_HEADER = f"""<header class="masthead"><h1>{TITLE}</h1>
<p>One language model answers the same prompt twice, at equal decode time: with every neuron, and with only those that a
method picks.</p></header>"""


def build(service: Service) -> gr.Blocks:
    """The whole page over ``service``."""
    serve_scripts()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_HEADER, apply_default_css=False, js_on_load=None)
        with gr.Tabs(elem_id="tabs"):
            for tab in (race, pareto, lab):
                with gr.Tab(tab.TITLE, id=tab.ID, elem_id=f"tab-{tab.ID}"):
                    tab.build(page, service)
        page.unload(service.leave)
    return page
