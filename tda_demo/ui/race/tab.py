"""The Race tab: what stands where, and which handler each part calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gradio as gr

from ...errors import UserError
from ..components import EVENT, facts, in_order, live_plot, race_stage
from ..reports import race_made, report_buttons
from ..service import Service, owner
from . import handlers
from .controls import DEFAULTS, ONLINE, Components, controls
from .stage import stage
from .view import RaceView

_SCALE = """<span class="scale"><span>0&nbsp;%</span><i aria-hidden="true"></i><span>100&nbsp;%</span>
<span class="sr-only">Colour scale from dark blue at 0 percent to yellow at 100 percent</span></span>"""

# Component names: what a run is told, what it draws, what the loading model draws.
_WISHES = ("prompt", *DEFAULTS, "scale")
_DRAWN = ("notice", "stage", "tokens", "layers", "neurons", "scale", "machine", "model_notice", "run", "stop")
_MODEL = ("model_notice", "machine", "scale")


def build(page: gr.Blocks, service: Service) -> None:
    """Puts the tab's components into ``page``, wired to ``service``."""
    parts = controls(service.offers, service.limits)
    parts["stage"] = race_stage(stage(RaceView()), elem_id="stage")
    parts |= _plots()
    parts["machine"] = facts(elem_id="machine")
    report_buttons(service, "race", race_made)
    _wire(page, service, parts)
    gr.api(_endpoint(service), api_name="race", concurrency_limit=None)


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
    def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        wishes: dict[str, Any] = dict(zip(_WISHES, values, strict=True))
        wishes["online"] = wishes["online"] == ONLINE
        for outputs in handlers.race(service, owner(request), wishes):
            yield in_order(_DRAWN, outputs)

    async def follow_model() -> AsyncIterator[list[Any]]:
        async for outputs in service.model_states():
            yield in_order(_MODEL, outputs)

    triggers = [parts["prompt"].submit, parts["run"].click]
    gr.on(triggers, run, [parts[name] for name in _WISHES], [parts[name] for name in _DRAWN], **EVENT)
    parts["stop"].click(service.stop, queue=False, **EVENT)
    page.load(follow_model, None, [parts[name] for name in _MODEL], **EVENT)


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
            return handlers.result(service, owner(request), wishes)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return race
