"""Two buttons that save what a tab shows as one HTML file or as JSON; the file is made when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..report import race_report
from ..report.race import RaceRecord, trace_of
from ..support.errors import UserError
from .components import EVENT, notice, saver, sentence
from .service import Service, owner
from .visits import Visit

if TYPE_CHECKING:
    from .race.view import RaceView

Made = tuple[str, Any]  # a report's HTML, and the data it holds


def report_buttons(service: Service, name: str, make: Callable[[Visit], Made]) -> None:
    """Puts the buttons where it is called. ``make`` raises UserError where there is nothing to report yet."""
    with gr.Row(elem_classes="report-actions"):
        page = gr.Button("Save a report (HTML)", size="sm", scale=0, min_width=170, elem_id=f"{name}-report-html")
        data = gr.Button("Save as JSON", size="sm", scale=0, min_width=120, elem_id=f"{name}-report-json")
        saved = notice(elem_id=f"{name}-report-notice")
    file = saver()

    def answer(request: gr.Request, kind: str) -> list[Any]:
        try:
            html, content = make(service.visits.of(owner(request)))
        except UserError as error:
            return [gr.skip(), sentence(str(error), "error")]
        if kind == "json":
            text, mime = json.dumps(content, ensure_ascii=False, indent=1), "application/json"
        else:
            text, mime = html, "text/html"
        return [{"name": f"tda-{name}.{kind}", "type": mime, "text": text}, sentence(f"Saved {name}.{kind}.")]

    def as_page(request: gr.Request) -> list[Any]:
        return answer(request, "html")

    def as_data(request: gr.Request) -> list[Any]:
        return answer(request, "json")

    page.click(as_page, None, [file, saved], **EVENT)
    data.click(as_data, None, [file, saved], **EVENT)


def remember_race(visit: Visit, view: RaceView) -> None:
    """Keeps a race that got as far as a result, for its report and for the other tabs."""
    own, result, request = view.sparse, view.result, view.request
    if result is None or own.prompt is None or view.ready is None or request is None:
        return
    decoding = {name: getattr(request, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    trace = trace_of(own.prompt, view.ready.d_ff, own.written, own.fired)
    shares = [each.mlp_share(result.dense.weight_bytes) for each in (own, view.rival)]
    visit.race = RaceRecord(request.prompt, decoding, result, trace, shares[0], rival_mlp_share=shares[1])


def race_made(visit: Visit) -> Made:
    """The report of the visit's last race.

    Raises:
        UserError: there was none yet.
    """
    if visit.race is None:
        raise UserError("No race yet: run one, then save its report.")
    return race_report(visit.race), visit.race.to_json()
