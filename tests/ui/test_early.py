"""The scripts that are added to the page's HTML, and to nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tda_demo.ui.early import SCRIPTS, EarlyStage

PAGE = "<html><body><p>one</p></body></html>"


def answer(response: Response, path: str = "/", method: str = "GET") -> httpx.Response:
    async def give(_: Any) -> Response:
        return response

    routes = [Route(path, give, methods=["GET", "POST"])]
    with TestClient(Starlette(routes=routes, middleware=[Middleware(EarlyStage)])) as client:
        return client.request(method, path)


@pytest.mark.parametrize("pieces", [1, 4])
def test_the_page_s_html_ends_with_the_scripts(pieces: int) -> None:
    parts = [PAGE[at : at + len(PAGE) // pieces + 1] for at in range(0, len(PAGE), len(PAGE) // pieces + 1)]
    whole = HTMLResponse(PAGE) if pieces == 1 else StreamingResponse(iter(parts), media_type="text/html")
    told = answer(whole)
    assert int(told.headers["content-length"]) == len(told.content)
    before, tags, after = told.text.partition('<script src="gradio_api/file=')
    assert (before, tags != "", after.endswith("</script></body></html>")) == ("<html><body><p>one</p>", True, True)
    assert all(str(script) in told.text and script.is_file() for script in SCRIPTS)


def test_everything_else_passes_as_it_is() -> None:
    assert answer(PlainTextResponse(PAGE)).text == PAGE
    assert answer(HTMLResponse(PAGE), path="/config").text == PAGE
    assert answer(HTMLResponse(PAGE), method="POST").text == PAGE
    assert answer(HTMLResponse("no end")).text == "no end"
    packed = Response(PAGE, media_type="text/html", headers={"content-encoding": "identity"})
    assert answer(packed).text == PAGE
