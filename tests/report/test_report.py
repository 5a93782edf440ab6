"""The report: one file that shows every figure, fetches nothing, and lets no text out of its place."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import PROMPT, tiny

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.evaluate.sweep_table import SweepRow
from tda_demo.report import sweep_report
from tda_demo.report.page import table
from tda_demo.report.race import _mark_parting
from tda_demo.report.svg import cividis, data_uri

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
    for name, value in seen.attributes:
        assert not name.startswith("on") and name != "src"
        assert name != "href" or str(value).startswith("data:image/png;base64,")
    return seen


def test_a_race_is_told_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())
    report, told = tmp_path / "out" / "race.html", tmp_path / "race.json"
    prompt = f"{PROMPT} {HOSTILE}"
    options = ["--set", "online=1", "--max-new-tokens", "8", "--report", str(report), "--json", str(told)]
    assert main(["race", prompt, *options]) == 0
    page = report.read_text(encoding="utf-8")
    seen = check_harmless(page)
    assert HOSTILE in seen.text and seen.tags.count("image") == 3
    result = json.loads(told.read_text(encoding="utf-8"))
    known = data(page)
    assert known["prompt"] == prompt and known.items() >= result.items() and known["decoding"]["max_new_tokens"] == 8
    assert len(known["trace"]["fired"]) == result["arms"]["sparse"]["tokens"] - 1
    assert len(known["trace"]["prompt_fired"]) == result["prompt_tokens"]
    kept = [1 - len(own) / width for own, width in zip(known["trace"]["active"], known["trace"]["d_ff"], strict=True)]
    assert kept == pytest.approx(result["sparsity"]["per_layer"])
    first = result["first_end"]
    names = {"dense": "dense", "sparse": "tda"}
    assert f"tokens of dense and tda when {names[first['arm']]} ended" in seen.text
    assert f"{first['tokens']['dense']} : {first['tokens']['sparse']}" in seen.text
    for figure in ("byte bound", "efficiency", "agreement", "KL", "tokens/s", f"{result['byte_bound']:.2f}×"):
        assert figure in seen.text


def test_texts_are_parted_where_they_part() -> None:
    assert _mark_parting("a<b", None) == "a&lt;b"
    assert re.sub("<b.*?</b>", "|", _mark_parting("a<bc", 2)) == "a&lt;|bc"


def test_a_sweep_is_told_whole() -> None:
    numbers = dict.fromkeys(SweepRow.__annotations__, 0.25)
    row = {**numbers, "model": HOSTILE, "method": "tda", "settings": HOSTILE, "precision": HOSTILE, "date": "today"}
    page = sweep_report([row, {**row, "tokens_per_second": None}])
    seen = check_harmless(page)
    assert seen.tags.count("title") == 1 + 3 * (2 + 2 + 1)  # a note a point; the second has no times
    assert data(page)[0]["model"] == HOSTILE and seen.text.count(HOSTILE) > 9


def test_a_row_that_lacks_a_field_keeps_its_columns() -> None:
    told = table([{"a": 1, "b": 2, "c": 3}, {"a": 4, "c": 6}])
    assert "<td>4</td><td></td><td>6</td>" in told


def test_hopeless_points_do_not_press_the_others_flat() -> None:
    numbers = dict.fromkeys(SweepRow.__annotations__, 0.25)
    row = {**numbers, "model": "m", "settings": "{}", "precision": "int8", "date": "today"}
    page = sweep_report([{**row, "method": f"m{at}", "kl": kl} for at, kl in enumerate((0.1, 0.2, 0.3, 0.4, 9.0))])
    assert page.count("; above it 1 more in the table") == 3  # against each of the three costs
    assert "m4 {}, int8: 0.25, 9" not in page and "<td>9</td>" in page


def test_a_picture_holds_what_was_drawn() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 50)).astype(np.uint8)
    found = Image.open(io.BytesIO(base64.b64decode(data_uri(values, cividis()).partition(",")[2])))
    assert np.array_equal(np.asarray(found.convert("RGB")), cividis()[values])
