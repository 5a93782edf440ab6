"""Lines with intervals, and heatmaps, as plotly figures in CSS variables: the browser fills in the theme's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ...widgets import plot_layout

COLOURS = tuple(f"var(--lab-{number})" for number in range(1, 7))
_INK, _RULE = "var(--ink)", "var(--rule)"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

Columns = Mapping[str, Sequence[Any]]
Views = dict[str, "View | None"]  # None where there is nothing to show of it


@dataclass(frozen=True)
class Plot:
    """One place for a plot: what stands there, and ``draw``, which makes its views from a finding's tables."""

    name: str
    title: str
    subtitle: str
    ghost: str
    views: tuple[str, ...]
    draw: Callable[[Mapping[str, Columns]], Views]


@dataclass(frozen=True)
class Line:
    """``low`` and ``high``, where there are any, are the ends of the 95 % intervals; ``style`` numbers the colour, and
    the dash too where ``dash`` does not."""

    name: str
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0
    dash: int | None = None


@dataclass(frozen=True)
class View:
    """A figure, and the names of its places along ``x`` and, of a heatmap, ``y``, for the tip."""

    figure: dict[str, Any]
    x: list[str]
    y: list[str]


def value(views: Views) -> dict[str, Any] | None:
    """What ``widgets.live_plot`` draws; None where no view has anything."""
    if not any(views.values()):
        return None
    by_name = {name: view or _empty_view() for name, view in views.items()}
    return {
        "views": {name: view.figure for name, view in by_name.items()},
        "hover": {
            "kind": "series",
            "x": {name: view.x for name, view in by_name.items()},
            "y": {name: view.y for name, view in by_name.items()},
        },
    }


def lines(
    series: Iterable[Line],
    places: Sequence[str],
    x_title: str,
    y_title: str,
    *,
    marks: Sequence[str] = (),
    y_range: tuple[float, float] | None = None,
    zero: bool = False,
    markers: bool = True,
) -> View | None:
    """Lines over ``places``, evenly spread; intervals are bands.

    Args:
        marks: what is written along the axis, one for each place, "" for none; left out, some of ``places``.
        zero: the zero line is drawn.
    """
    with_values = [line for line in series if len(line.y)]
    if not with_values:
        return None
    traces: list[go.Scatter] = []
    for line in with_values:
        dash = line.style if line.dash is None else line.dash
        colour, x = COLOURS[line.style % len(COLOURS)], list(range(len(line.y)))
        ends = [list(pair) for pair in zip(_round(line.low), _round(line.high), strict=True)]
        if ends:
            band = [_round(line.high), _round(line.low)]
            traces.append(
                go.Scatter(
                    x=x + x[::-1],
                    y=band[0] + band[1][::-1],
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.18,
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        traces.append(
            go.Scatter(
                x=x,
                y=_round(line.y),
                customdata=ends or None,
                name=line.name,
                mode="lines+markers" if markers else "lines",
                line={"color": colour, "width": 2, "dash": _DASHES[dash % len(_DASHES)]},
                marker={"size": 5, "color": colour},
                hoverinfo="none",
            )
        )
    texts = list(marks) or _thin_out(places)
    labelled = [index for index, text in enumerate(texts) if text]
    layout = _layout(
        hovermode="x",
        hoverdistance=-1,
        xaxis={
            **_axis(x_title),
            "range": [-0.5, len(places) - 0.5],
            "tickvals": labelled,
            "ticktext": [texts[index] for index in labelled],
        },
        yaxis={**_axis(y_title), "gridcolor": _RULE, "showgrid": True, "nticks": 5, "range": y_range},
        shapes=[_zero_line()] if zero else [],
    )
    return View(go.Figure(traces, layout).to_dict(), list(places), [])


def heatmap(z: Sequence[Sequence[float]], x: Sequence[str], y: Sequence[str], x_title: str, y_title: str) -> View:
    """Values as colours from the least to the largest, which the scale beside it names."""
    figure = go.Figure(
        go.Heatmap(
            z=[_round(row) for row in z],
            colorscale="Cividis",
            hoverinfo="none",
            colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 4},
        ),
        _layout(
            xaxis={**_axis(x_title), "tickvals": list(range(len(x))), "ticktext": _thin_out(x, most=8)},
            yaxis={
                **_axis(y_title),
                "tickvals": list(range(len(y))),
                "ticktext": _thin_out(y, most=8),
                "autorange": "reversed",
            },
        ),
    )
    return View(figure.to_dict(), list(x), list(y))


def estimates(table: Columns, column: str, name: str, style: int, *, factor: float = 1.0, **where: Any) -> Line:
    """The column of estimates ``column`` with its interval, of the rows in which the columns ``where`` are so."""
    rows = matching(table, **where)

    def of(name: str) -> list[float]:
        return [factor * table[name][row] for row in rows] if name in table else []

    return Line(name, of(column), of(f"{column} low"), of(f"{column} high"), style)


def matching(table: Columns, **where: Any) -> list[int]:
    """The rows of ``table`` in which every named column has the value given; names are written with _ for a space."""
    wanted = {name.replace("_", " "): value for name, value in where.items()}
    length = len(next(iter(table.values()), ()))
    return [row for row in range(length) if all(table[name][row] == value for name, value in wanted.items())]


def layers(count: int) -> list[str]:
    return [f"layer {layer}" for layer in range(count)]


def layer_marks(count: int) -> list[str]:
    """Marks of an axis of layers."""
    step = max(1, math.ceil((count - 1) / 6))
    return [str(layer) if layer % step == 0 else "" for layer in range(count)]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order they come."""
    return list(dict.fromkeys(values))


def _thin_out(texts: Sequence[str], most: int = 10) -> list[str]:
    step = math.ceil(len(texts) / most) or 1
    return [text if index % step == 0 else "" for index, text in enumerate(texts)]


def _round(values: Sequence[float]) -> list[float]:
    return [float(f"{number:.4g}") for number in values]


def _layout(**overrides: Any) -> dict[str, Any]:
    return plot_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": _INK, "size": 12}},
        dragmode=False,
        margin={"l": 58, "r": 8, "t": 8, "b": 40},
        **overrides,
    )


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "showgrid": False, "zeroline": False, "automargin": True, "fixedrange": True}


def _empty_view() -> View:
    text = {
        "text": "not measured in this run",
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
    }
    hidden = {"visible": False}
    return View(go.Figure([], _layout(annotations=[text], xaxis=hidden, yaxis=hidden)).to_dict(), [], [])


def _zero_line() -> dict[str, Any]:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": _INK, "width": 1}}
