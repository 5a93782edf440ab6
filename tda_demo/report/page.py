"""What reports are put together from: a page, its sections, tables. Whatever a model or a user wrote is escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("style.css")


def page(title: str, lead: str, sections: Iterable[str], data: Any) -> str:
    """A whole file; ``data`` is embedded as JSON in a script element that no browser runs."""
    style = _STYLE.read_text(encoding="utf-8")
    # "</" would end the script element early, whatever the JSON means by it.
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{style}</style></head><body><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f"{''.join(sections)}"
        f'<script type="application/json" id="data">{embedded}</script></body></html>\n'
    )


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` with None for numbers that JSON cannot say, such as the perplexity of a model that is broken."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def section(title: str, content: str) -> str:
    """Nothing at all where there is no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def figure(title: str, content: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{content}</figure>" if content else ""


def numbers(values: Sequence[tuple[str, str, str]]) -> str:
    """Large figures: a name, a value, and what it is measured in or made of."""
    cells = "".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="unit">{escape(unit)}</dd></div>'
        for name, value, unit in values
    )
    return f'<dl class="figures">{cells}</dl>'


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values, a line each."""
    cells = "".join(f"<tr><th>{escape(str(name))}</th><td>{_value(value)}</td></tr>" for name, value in values.items())
    return f'<div class="scroll"><table>{cells}</table></div>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line each of ``rows``, under the fields of the first; what a row lacks is left blank. Nothing without a row."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_value(row.get(name))}</td>" for name in rows[0]) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return pairs(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value)
    return escape("" if value is None else str(value))
