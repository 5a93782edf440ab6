"""The page: what stands where, and which handler each part calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gradio as gr

from ..errors import UserError
from .components import facts, live_plot, race_stage, serve_scripts
from .controls import DEFAULTS, ONLINE, Components, controls
from .handlers import Outputs, Service, owner
from .stage import stage
from .view import RaceView

TITLE = "TDA race"
_HEADER = f"""<header class="masthead"><h1>{TITLE}</h1>
<p>One language model writes the same answer twice, at equal decode time: with every neuron, and with only those that
fired on your prompt.</p></header>"""
_SCALE = """<span class="scale"><span>0&nbsp;%</span><i aria-hidden="true"></i><span>100&nbsp;%</span>
<span class="sr-only">Colour scale from dark blue at 0 percent to yellow at 100 percent</span></span>"""

# Component names: what a run is told, what it draws, what the loading model draws.
_WISHES = ("prompt", *DEFAULTS, "scale")
_DRAWN = ("notice", "stage", "tokens", "layers", "neurons", "scale", "machine", "model_notice", "run", "stop")
_MODEL = ("model_notice", "machine", "scale")


def build(service: Service) -> gr.Blocks:
    """The whole page over ``service``."""
    serve_scripts()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_HEADER, apply_default_css=False, js_on_load=None)
        parts = controls(service.offers, service.limits)
        parts["stage"] = race_stage(stage(RaceView()), elem_id="stage")
        parts |= _plots()
        parts["machine"] = facts(elem_id="machine")
        _wire(page, service, parts)
        gr.api(_endpoint(service), api_name="race", concurrency_limit=None)
    return page


def _plots() -> Components:
    tokens = live_plot(
        "Neurons, layer by token",
        "A column is a token: the prompt, then what TDA writes. A row is a layer, the first on top.",
        "Every token will add a column: how many of each layer's neurons fired for it.",
        kind="tokens",
        views=("fired", "computed"),
        scale=_SCALE,
        elem_id="token-map",
    )
    with gr.Row(elem_id="set-plots"):
        with gr.Column(scale=2, min_width=300):
            layers = live_plot(
                "Kept per layer",
                "What the prompt's active sets hold, and what leaving out the rest did to each layer.",
                "One bar per layer: the share of its neurons TDA computes.",
                kind="layers",
                elem_id="layer-bars",
            )
        with gr.Column(scale=3, min_width=300):
            neurons = live_plot(
                "The active sets, neuron by neuron",
                "A row is a layer; marked neurons are computed for every written token.",
                "One mark per neuron that this prompt keeps.",
                kind="neurons",
                elem_id="neuron-map",
            )
    return {"tokens": tokens, "layers": layers, "neurons": neurons}


def _wire(page: gr.Blocks, service: Service, parts: Components) -> None:
    # The worker is the queue; gradio's own must let every visitor through to it, to be told their place.
    options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

    def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        wishes: dict[str, Any] = dict(zip(_WISHES, values, strict=True))
        wishes["online"] = wishes["online"] == ONLINE
        for outputs in service.race(owner(request), wishes):
            yield _in_order(_DRAWN, outputs)

    async def follow_model() -> AsyncIterator[list[Any]]:
        async for outputs in service.model_states():
            yield _in_order(_MODEL, outputs)

    triggers = [parts["prompt"].submit, parts["run"].click]
    gr.on(triggers, run, [parts[name] for name in _WISHES], [parts[name] for name in _DRAWN], **options)
    parts["stop"].click(service.stop, queue=False, **options)
    page.load(follow_model, None, [parts[name] for name in _MODEL], **options)
    page.unload(service.leave)


def _in_order(names: tuple[str, ...], outputs: Outputs) -> list[Any]:
    return [outputs.get(name, gr.skip()) for name in names]


def _endpoint(service: Service) -> Callable[..., dict]:
    def race(
        prompt: str,
        request: gr.Request,
        cett: float = DEFAULTS["cett"],
        max_new_tokens: int = DEFAULTS["max_new_tokens"],
        model: str = DEFAULTS["model"],
        precision: str = DEFAULTS["precision"],
        online: bool = False,
        temperature: float = DEFAULTS["temperature"],
        top_p: float = DEFAULTS["top_p"],
        seed: int = DEFAULTS["seed"],
    ) -> dict:
        """Race the dense model against TDA on a prompt: waits its turn, then returns everything measured, as JSON."""
        wishes = {
            "prompt": prompt,
            "cett": cett,
            "max_new_tokens": max_new_tokens,
            "model": model,
            "precision": precision,
            "online": online,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        try:
            return service.result(owner(request), wishes)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return race
