"""The report: one file that shows every figure, fetches nothing, and lets no text out of its place."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, tiny

import tda_demo.models
from tda_demo.__main__ import main
from tda_demo.evaluate.row import Row
from tda_demo.report import sweep_report

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


class Tags(HTMLParser):
    """The tags, attributes and data of a page, as a browser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def check_harmless(page: str) -> Tags:
    seen = Tags(page)
    assert seen.tags.count("script") == 1 and not {"img", "iframe", "link", "object"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    return seen


def test_a_race_is_told_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tda_demo.models, "load_model", lambda *_args, **_kwargs: tiny())
    report, told = tmp_path / "out" / "race.html", tmp_path / "race.json"
    prompt = f"{PROMPT} {HOSTILE}"
    options = ["--set", "online=1", "--max-new-tokens", "8", "--report", str(report), "--json", str(told)]
    assert main(["race", prompt, *options]) == 0
    page = report.read_text(encoding="utf-8")
    seen = check_harmless(page)
    assert HOSTILE in seen.text and seen.tags.count("svg") == 2
    assert data(page) == {"prompt": prompt, **json.loads(told.read_text(encoding="utf-8"))}
    assert data(page)["arms"]["sparse"]["text"] in seen.text


def test_a_sweep_is_told_whole() -> None:
    numbers = dict.fromkeys(Row.__annotations__, 0.25)
    row = Row(**{**numbers, "model": HOSTILE, "method": "tda", "settings": HOSTILE, "precision": "int8"})  # type: ignore[arg-type]
    page = sweep_report([row])
    assert check_harmless(page).tags.count("circle") == 1
    assert data(page)[0]["model"] == HOSTILE
