"""What the page remembers of each visitor while the visit lasts, and the buttons that save it as a report."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..support.errors import UserError
from .widgets import EVENT, notice, saver, sentence

if TYPE_CHECKING:
    from ..report.race import RaceRecord

ReportContent = tuple[str, Any]  # the HTML, and the data it holds
_MOST = 64  # visits: of more, the one heard of longest ago is forgotten


@dataclass
class Visit:
    """``race`` is the last one that finished or was stopped; ``rows`` are tidy fields of ``SweepRow``.

    ``lab_opened`` once the lab has been shown what ships; after that what stands there is the visitor's own.
    """

    race: RaceRecord | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    lab_opened: bool = False


class Visits:
    """Visits by session; nothing of one is left once it is forgotten, and nothing is kept of callers without one."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, Visit] = OrderedDict()

    def of(self, owner: str) -> Visit:
        if not owner:
            return Visit()
        visit = self._by_owner.setdefault(owner, Visit())
        self._by_owner.move_to_end(owner)
        while len(self._by_owner) > _MOST:
            self._by_owner.popitem(last=False)
        return visit

    def forget(self, owner: str) -> None:
        self._by_owner.pop(owner, None)


def owner(request: gr.Request) -> str:
    """Who may stop a run: the session, which gradio gives every open page and every API client.

    A bare HTTP call may come without one, "": it owns nothing that another call could stop or see.
    """
    return request.session_hash or ""


def report_buttons(visits: Visits, name: str, make: Callable[[Visit], ReportContent]) -> None:
    """Two buttons that save what a tab shows as one HTML file or as JSON; the file is made when it is asked for.

    ``make`` raises UserError where there is nothing to report yet.
    """
    with gr.Row(elem_classes="report-actions"):
        page = gr.Button("Save a report (HTML)", size="sm", scale=0, min_width=170, elem_id=f"{name}-report-html")
        data = gr.Button("Save as JSON", size="sm", scale=0, min_width=120, elem_id=f"{name}-report-json")
        saved = notice(elem_id=f"{name}-report-notice")
    file = saver()

    def answer(request: gr.Request, kind: str) -> list[Any]:
        try:
            html, content = make(visits.of(owner(request)))
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
