"""The report's page: settings, environment, texts, plots and every figure, and the JSON they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from .svg import Series, plot

if TYPE_CHECKING:
    from ..evaluate.row import Row
    from ..result import RaceResult

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .75rem; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; }
svg text:not([fill]) { fill: currentColor; } svg .grid { stroke: var(--line); }
.arms { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
"""


def race_report(result: RaceResult, prompt: str) -> str:
    """One race as HTML text; model and user text is escaped, and nothing is fetched."""
    told = result.to_json()
    arms = (("dense", result.dense), (result.method, result.sparse))
    times = [Series(name, list(enumerate(arm.step_ms, start=1))) for name, arm in arms]
    layers = [Series("sparsity", list(enumerate(result.sparsity)))]
    if result.quality:
        layers.append(Series("realised CETT", list(enumerate(result.quality.cett))))
    figures = {name: told[name] for name in ("speedup", "byte_bound", "efficiency", "quality", "prompt_tokens")}
    figures |= {
        name: {key: value for key, value in asdict(arm).items() if key not in ("text", "step_ms")} for name, arm in arms
    }
    figures["sparsity (mean)"] = told["sparsity"]["mean"]
    texts = "".join(f"<div><h3>{escape(name)}</h3><pre>{escape(arm.text)}</pre></div>" for name, arm in arms)
    return _page(
        f"Race: {result.model}, {result.method}",
        [
            _section("Prompt", f"<pre>{escape(prompt)}</pre>"),
            _section("Texts", f'<div class="arms">{texts}</div>'),
            _section("Settings", _pairs({"method": result.method, **result.settings})),
            _section("Figures", _pairs(figures)),
            _section("Step times", plot(times, "token", "ms", lines=True)),
            _section("Layers", plot(layers, "layer", "share", lines=True)),
            _section("Environment", _pairs({"engine": result.engine, "device": result.device, **result.environment})),
        ],
        {"prompt": prompt, **told},
    )


def sweep_report(rows: Sequence[Row]) -> str:
    """A sweep's table as HTML text, quality plotted against the bytes a step reads."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.method}, {row.precision}", []).append(row)
    series = [
        Series(
            name,
            [(row.step_bytes / 1e6, row.kl) for row in group],
            [f"{row.method} {row.settings}, {row.precision}: KL {row.kl:.4f}" for row in group],
        )
        for name, group in groups.items()
    ]
    listed = [asdict(row) for row in rows]
    return _page(
        "Sweep: " + ", ".join(sorted({row.model for row in rows})),
        [
            _section("Quality beside bytes", plot(series, "MB a step reads", "KL, nats/token", lines=False)),
            _section("Every row", _table(listed)),
        ],
        listed,
    )


def _page(title: str, sections: Iterable[str], data: Any) -> str:
    # In a script element only "</" could end the data early; JSON may spell it with an escape.
    embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(sections)}"
        f'<script type="application/json" id="data">{embedded}</script></body></html>\n'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _pairs(values: Mapping[str, Any]) -> str:
    cells = "".join(f"<tr><th>{escape(str(name))}</th><td>{_value(value)}</td></tr>" for name, value in values.items())
    return f"<table>{cells}</table>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_value(each)}</td>" for each in row.values()) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(each) for each in value)
    return escape("" if value is None else str(value))
