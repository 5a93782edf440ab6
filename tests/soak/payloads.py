"""Script payloads through everything that a page or a report shows: how many of them run, in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import product
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlencode

from browser import Visitor, launch
from playwright.sync_api import Page as Tab
from playwright.sync_api import sync_playwright
from served import Page

_BREAKS = ("", '">', "'>", "</textarea>", "</script>", "</title></style>", "-->", "`]}")
_VECTORS = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'>",
    "<details open ontoggle=window.hacked=1>",
    "{{constructor.constructor('window.hacked = 1')()}} ${window.hacked = 1} <%= window.hacked = 1 %>",
)
PAYLOADS = tuple(start + vector for start, vector in product(_BREAKS, _VECTORS))


@dataclass(frozen=True)
class Row:
    """Of ``tried`` payloads through one ``way`` so many were ``executed``."""

    way: str
    tried: int
    executed: int


def run(page: Page, folder: Path) -> Iterator[Row]:
    address = f"http://127.0.0.1:{page.port}/"
    with sync_playwright() as playwright:
        browser = launch(playwright)
        visitor = Visitor(browser, address)
        visitor.set_new_tokens(1)
        yield _tried("a prompt", visitor.page, lambda payload: _race(visitor, payload))
        yield _tried("what a model writes", visitor.page, visitor.show_output)
        yield _tried("a text in the Lab", visitor.page, lambda payload: _measure(visitor, payload))
        yield _tried("a link", visitor.page, lambda payload: _follow(visitor, address, payload))
        reports = list(_reports(folder))
        tab = browser.new_page()
        for way, kind in (("a report's texts", "texts"), ("names of models in a report", "names")):
            files = iter([path for of, path in reports if of == kind])
            yield _tried(way, tab, lambda _, files=files: tab.goto(next(files).as_uri()))
        browser.close()


def _tried(way: str, tab: Tab, through: Callable[[str], object]) -> Row:
    executed = 0
    for payload in PAYLOADS:
        through(payload)
        tab.wait_for_timeout(50)  # what loads in vain says so a little later
        executed += tab.evaluate("window.hacked === undefined ? 0 : 1")
        tab.evaluate("delete window.hacked")
    return Row(way, len(PAYLOADS), executed)


def _race(visitor: Visitor, payload: str) -> None:
    visitor.ask(payload)
    visitor.wait_for_phase("finished")
    visitor.page.get_by_test_id("heatmap").hover(position={"x": 5, "y": 5})


def _measure(visitor: Visitor, payload: str) -> None:
    """A text that is too short to measure is refused, in words that may hold it."""
    visitor.page.click("#tabs button[role=tab]:has-text('Lab')")
    field = visitor.page.locator("#root-cause-text textarea")
    field.fill(payload)
    before = visitor.page.inner_text("#root-cause-notice")
    visitor.page.click("#root-cause-run")
    visitor.page.wait_for_function(
        "before => document.querySelector('#root-cause-notice').innerText !== before", arg=before
    )
    visitor.page.wait_for_selector("#root-cause-run:not([disabled])")


def _follow(visitor: Visitor, address: str, payload: str) -> None:
    names = ("prompt", "method", "rival", "model", "precision", "tda.cett", "tda.scale", "theme", "embed", payload)
    visitor.page.goto(f"{address}?{urlencode(dict.fromkeys(names, payload))}")
    visitor.page.wait_for_selector("gradio-app #prompt textarea")


def _reports(folder: Path) -> Iterator[tuple[str, Path]]:
    """Reports of races of prompts that are payloads, and of models that are called so."""
    from tiny import tiny

    import tda_demo.model.loading as loading
    from tda_demo.__main__ import main

    lm = tiny()
    for at, payload in enumerate(PAYLOADS):
        for kind, prompt, name in (("texts", payload, lm.name), ("names", "the end", payload)):
            path = folder / f"{at}-{kind}.html"
            named = replace(lm, name=name)
            loads = patch.object(loading, "load_model", lambda *_args, named=named, **_settings: named)
            with loads, redirect_stdout(StringIO()):
                assert main(["race", prompt, "--max-new-tokens", "2", "--report", str(path)]) == 0
            yield kind, path
