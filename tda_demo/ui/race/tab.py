"""The Race tab: what stands where, and which handler each part calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from ...support.errors import UserError
from ..job import JobAndFrame, wire
from ..models import EMBEDDED
from ..requests import AUTOMATIC, RunRequest, parse_request
from ..service import Service
from ..visits import ReportContent, Visit, owner, report_buttons
from ..widgets import EVENT, facts, in_order, live_plot, race_stage, sentence
from .controls import controls, defaults, layered, parse_link
from .expected import expectations
from .frame import RaceFrame, race_json
from .method_controls import Components, settings
from .recorded import recorded_race
from .runs import race_job
from .view import RaceView

_STANDARD = RunRequest(prompt="")


def build(page: gr.Blocks, service: Service) -> None:
    """Puts the tab's components into ``page``, wired to ``service``."""
    shown = recorded_race()
    parts = controls(service.offers, service.limits, expectations(), shown.prompt)
    parts["stage"] = race_stage(shown.stage, elem_id="stage")
    with gr.Column(elem_id="drawer"):
        gr.Button("Details: the machine, the active sets, downloads", size="sm", elem_id="open-drawer")
        # Folded in by CSS and not an Accordion: gradio does not keep what it is told of a closed one's contents.
        with gr.Column(elem_id="drawer-body"):
            parts |= _details(service, shown.facts)
    _wire(page, service, parts)
    gr.api(_endpoint(service), api_name="race", concurrency_limit=None)


def _details(service: Service, machine: list[list[str]]) -> Components:
    parts: Components = {"machine": facts(value=machine, elem_id="machine"), **_plots()}
    report_buttons(service.visits, "race", _report)
    return parts


def _plots() -> Components:
    with gr.Row(elem_id="set-plots"):
        with gr.Column(scale=2, min_width=300):
            layers = live_plot(
                "Kept per layer",
                "What is computed of each layer, and what leaving out the rest did on your prompt; a target is for the "
                "calibration passages.",
                "One bar per layer: the share of its neurons that is computed.",
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
    return {"layers": layers, "neurons": neurons}


def _report(visit: Visit) -> ReportContent:
    """The report of the visit's last race.

    Raises:
        UserError: there was none yet.
    """
    from ...report import race_report

    if visit.race is None:
        raise UserError("No race yet: run one, then save its report.")
    return race_report(visit.race), visit.race.to_json()


def _wire(page: gr.Blocks, service: Service, parts: Components) -> None:
    of_methods, of_layers = list(settings()), tuple(layered())
    controlled = ("prompt", *defaults(), *of_layers)
    loaded = (*controlled, "notice", "model_notice", "machine")

    def start(*values: Any) -> JobAndFrame:
        known = dict(zip(controlled, values, strict=True))
        known["prompt"] = known["prompt"] or recorded_race().prompt  # which stands there in grey
        wishes = {name: value for name, value in known.items() if "." not in name}
        for method, wish in (("method", "settings"), ("rival", "rival_settings")):
            chosen = [setting for setting in of_methods if setting.method.name == known[method]]
            wishes[wish] = {setting.field.name: known[setting.key] for setting in chosen}
        factor_counts = {name: len(known[name]) if isinstance(known[name], list) else 0 for name in of_layers}
        job = race_job(parse_request(service.offers, **wishes, limits=service.limits), service.limits)
        return job, RaceFrame(RaceView(job.request), factor_counts)

    async def begin(request: gr.Request) -> AsyncIterator[list[Any]]:
        """What the link says, then how far the model is."""
        try:
            linked = parse_link(service.offers, service.limits, dict(request.query_params))
        except UserError as error:
            linked = {"notice": sentence(f"This link cannot be used. {error}", "error")}
        yield in_order(loaded, linked)
        async for outputs in service.model_states():
            if (ones := outputs.get("scale")) is not None:
                outputs |= {name: ones for name in of_layers if name not in linked}
            yield in_order(loaded, outputs)

    wire(service, parts, [parts[name] for name in controlled], start, parts["prompt"].submit)
    page.load(begin, None, [parts[name] for name in loaded], **EVENT)


def _endpoint(service: Service) -> Callable[..., dict]:
    def race(
        prompt: str,
        request: gr.Request,
        cett: float | None = None,
        max_new_tokens: int = _STANDARD.max_new_tokens,
        model: str = EMBEDDED,
        precision: str = AUTOMATIC,
        online: bool | None = None,
        temperature: float = _STANDARD.temperature,
        top_p: float = _STANDARD.top_p,
        seed: int = _STANDARD.seed,
        method: str = _STANDARD.method.name,
        settings: dict | None = None,
        rival: str | None = None,
        rival_settings: dict | None = None,
    ) -> dict:
        """Race the dense model against a method on a prompt: waits its turn, then returns everything measured, as JSON.

        ``settings`` are the method's own, by name; ``cett`` and ``online`` are two of them. ``rival`` is a second
        method that races at the same time, ``rival_settings`` its own.
        """
        shorthands = {name: value for name, value in (("cett", cett), ("online", online)) if value is not None}
        wishes = {
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "model": model,
            "precision": precision,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "method": method,
            # What is no mapping is refused with the rest of what is wrong, whatever a client sent.
            "settings": shorthands | settings if isinstance(settings, dict) else settings or shorthands,
            "rival": rival,
            "rival_settings": rival_settings,
        }
        try:
            return race_json(service, owner(request), wishes)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return race
