"""An experiment as HTML: the claim, the verdicts, the plots, every table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING

from . import svg
from .page import figure, page, pairs, section, table

if TYPE_CHECKING:
    from ..theory.findings import Finding, Table


@dataclass(frozen=True)
class _View:
    """``x`` is the column along the axis, by its logarithm to base 2 where ``doubling``; every combination of the
    columns ``by`` is a line; each of ``y`` is a plot of the columns it names, means over the rows of one place.
    ``label`` names what several columns have in common."""

    x: str
    y: Sequence[Sequence[str]]
    by: Sequence[str] = ()
    doubling: bool = False
    label: str = ""


_GRADIENT = "mean dL/dp at p > 0 / rms"
_VIEWS: Mapping[str, _View] = {
    "layers": _View(
        "layer", [[_GRADIENT], ["share of p > 0 with dL/dp > 0"], ["share near zero"]], ["model", "tensor"]
    ),
    "movement": _View("layer", [["Jaccard"], ["rank correlation"]], ["history"]),
    "swap": _View("layer", [["Jaccard"]], ["tokens", "shared"]),
    "regression": _View("layer", [["prefix", "meaning"]], ["tokens"], label="adds to the overlap"),
    "neighbours": _View("layer", [["Jaccard"], ["cosine"]], ["tokens", "fed"]),
    "echo": _View("up to token", [["changed"]], ["inserted"], doubling=True),
    "drift": _View("up to token", [["own prompt", "another prompt"]], doubling=True, label="share covered"),
    "curve": _View(
        "step",
        [["loss, nats per token"], ["share of exact zeros"], ["share near zero"], [_GRADIENT]],
        ["function", "run"],
    ),
}


def theory_report(finding: Finding) -> str:
    """One finding as HTML text; everything is escaped, and nothing is fetched."""
    verdicts = "".join(f"<li>{escape(line)}</li>" for line in (*(c.verdict for c in finding.checks), *finding.notes))
    return page(
        f"The paper's theory: {finding.experiment}",
        finding.model if finding.complete else f"{finding.model}; stopped early: of what had been measured",
        [
            section("Claim", f"<p>{escape(finding.claim)}</p>"),
            section("Prediction", f"<p>{escape(finding.prediction)}</p>"),
            section("Measured", f"<ul>{verdicts}</ul>"),
            section("Settings", pairs(finding.settings)),
            *(section(results.title, plots(results) + table(_rows(results))) for results in finding.tables),
        ],
        finding.to_json(),
    )


def _rows(results: Table) -> list[dict[str, object]]:
    return [dict(zip(results.columns, row, strict=True)) for row in zip(*results.columns.values(), strict=True)]


def plots(table: Table) -> str:
    """Nothing where the table says nothing that lines could."""
    if not any(table.columns.values()):
        return ""
    if table.name == "histogram":
        x, *models = table.columns
        return _plot(table, _View(x, [models], label="share of the activations"), models)
    view = _VIEWS.get(table.name)
    return "".join(_plot(table, view, y) for y in view.y) if view else ""


def _plot(table: Table, view: _View, y: Sequence[str]) -> str:
    lines: dict[tuple[str, ...], dict[float, list[int]]] = {}  # the rows of every place of every line
    for row, x in enumerate(table.columns[view.x]):
        line = lines.setdefault(tuple(_in_words(name, table.columns[name][row]) for name in view.by), {})
        line.setdefault(math.log2(x) if view.doubling else float(x), []).append(row)
    drawn = [(names, places, column) for names, places in lines.items() for column in y]
    series = [
        svg.Series(
            ", ".join([*names, column] if len(y) > 1 else names),
            list(zip(places, _means(table, column, places), strict=True)),
            svg.COLOURS[index % len(svg.COLOURS)],
            shape="",
            band=[*zip(*(_means(table, f"{column} {end}", places) for end in ("low", "high")), strict=True)],
        )
        for index, (names, places, column) in enumerate(drawn)
    ]
    label = view.label or y[0]
    x_label = f"{view.x}, log2" if view.doubling else view.x
    return figure(label, svg.legend(series) + svg.plot(series, x_label, label))


def _means(table: Table, column: str, places: Mapping[float, Sequence[int]]) -> list[float]:
    """Of ``column`` at every place; nothing where there is no such column."""
    values = table.columns.get(column)
    return [fmean(values[row] for row in rows) for rows in places.values()] if values else []


def _in_words(name: str, value: object) -> str:
    return f"{name} {value + 1}" if isinstance(value, int) else str(value)
