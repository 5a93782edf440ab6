"""The plot and its table: every point as plotly traces, one a method and precision, for each pair of axes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...methods import METHODS
from ...methods.controls import unbeaten
from ...model.precision import REFERENCE, symbol_of
from ...report.svg import useful_top
from ...stats.metrics import frontier
from .. import wording
from ..widgets import plot_layout
from .points import RACE, SHIPPED, SOURCES, VISITOR, Point

_INK, _MUTED, _RULE, _SHEET = "var(--ink)", "var(--muted)", "var(--rule)", "var(--paper)"
# A method's colour is its own, whatever else is measured; ``assets/pareto.css`` says which.
_COLOURS = {"dense": "var(--dense)", "tda": "var(--tda)"} | {
    method: f"var(--series-{method})" for method in METHODS if method != "tda"
}


@dataclass(frozen=True)
class Axis:
    """A quantity to plot: its value of a point in ``unit``, and whether more of it is better."""

    label: str
    title: str
    value: Callable[[Point], float | None]
    more_is_better: bool = False


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


COSTS = {
    "bytes": Axis("bytes a token", "weight bytes read a token, MB", lambda point: point.megabytes),
    "share": Axis("MLP share", "share of the MLP weight bytes read, %", lambda point: _percent(point.share)),
    "rate": Axis("tokens/s", "tokens/s (dense's × measured speedup)", lambda point: point.rate, more_is_better=True),
}
QUALITIES = {
    "kl": Axis("KL", "KL to float32, nats/token", lambda point: point.kl),
    "perplexity": Axis("perplexity", "perplexity above float32, %", lambda point: _percent(point.rise)),
    "agreement": Axis(
        "agreement", "agreement with float32, %", lambda point: _percent(point.agreement), more_is_better=True
    ),
}


def plot_value(points: Sequence[Point]) -> dict[str, Any] | None:
    """What ``assets/pareto.js`` draws, JSON-ready; None without a point.

    ``views`` by ``quality/cost``: figures whose traces name their ``method``, ``precision`` and ``source`` in ``meta``
    and give each point's number in ``customdata``, and how many points lie ``beyond`` the axis; ``legend``, what can be
    switched off; ``opens``, the precision that is shown at first, and the ``verdict`` on it; ``tips``, lines about each
    point; ``table``, a header and a row a point; ``rows``, the tidy fields that are exported.
    """
    if not points:
        return None
    colours = _colours(points)
    rows = [point.fields for point in points]
    return {
        "views": {
            f"{quality}/{cost}": _figure(points, QUALITIES[quality], COSTS[cost], colours)
            for quality in QUALITIES
            for cost in COSTS
        },
        "legend": {
            "method": [
                {"key": method, "label": method_name(method), "colour": colour} for method, colour in colours.items()
            ],
            "precision": [
                {"key": precision, "label": precision, "symbol": symbol_of(precision)}
                for precision in dict.fromkeys(point.precision for point in points)
            ],
            "source": [
                {"key": source, "label": source}
                for source in SOURCES
                if any(point.source == source for point in points)
            ],
        },
        "opens": opening(points),
        "verdict": verdict(points, opening(points)),
        "tips": [tip(point, unbeaten(point.fields, rows)) for point in points],
        "table": {"head": list(_COLUMNS), "body": [[cell(point) for cell in _COLUMNS.values()] for point in points]},
        "rows": [{"source": point.source, **point.fields} for point in points],
    }


def opening(points: Sequence[Point]) -> str:
    """The precision of most shipped points: one picture to begin with."""
    counts = Counter(point.precision for point in points if point.source == SHIPPED)
    return counts.most_common(1)[0][0] if counts else points[0].precision


def verdict(points: Sequence[Point], precision: str) -> str:
    """What beats what among the shipped points of one precision, in two sentences at most; empty of too few."""
    own = [point for point in points if point.source == SHIPPED and point.precision == precision]
    best = frontier([point.megabytes for point in own], [point.kl for point in own])
    names = list(dict.fromkeys(method_name(own[at].method) for at in best if own[at].method != "dense"))
    if len(own) < 3 or not names:
        return ""
    told = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    said = f"In {precision}, none beats {told}: each has the least KL at the bytes it reads."
    faster = [point for point in own if (point.fields["speedup_low"] or 0) > 1]
    if not faster:
        return f"{said} None was measured faster than dense."
    least = min(faster, key=lambda point: point.kl)
    return (
        f"{said} Of what was measured faster than dense, {method_name(least.method)} {settings_text(least)} costs "
        f"least: KL {least.kl:.3f} at {wording.times(least.fields['speedup'])}."
    )


def method_name(method: str) -> str:
    return METHODS[method].__name__ if method in METHODS else method


def tip(point: Point, control: Mapping[str, Any] | None = None) -> list[str]:
    """All that is known of a point, for whoever rests on it; ``control`` is the row of one that it does not beat."""
    fields = point.fields
    text = f"{fields['scored_tokens']:,} tokens of {fields['text']}, after {fields['prompt_tokens']} of prompt"
    speed = "no times were taken"
    if point.rate is not None:
        speed = f"{wording.rate(point.rate)} tokens/s"
        if fields["speedup"] is not None:
            speed += (
                f", {wording.times(fields['speedup'])} dense ({fields['speedup_low']:.2f}–{fields['speedup_high']:.2f},"
                f" n = {fields['speedup_n']})"
            )
    against = "the dense arm" if point.source == RACE else REFERENCE
    rise = "" if point.rise is None else f", perplexity {100 * point.rise:+.1f} %"
    return [
        f"{method_name(point.method)} {settings_text(point)}".strip() + f", {point.precision}",
        *([f"{point.source} of {point.model}"] if point.source != SHIPPED else []),
        f"KL {_kl(point)} nats/token{rise}, agreement {wording.percent(point.agreement, 1)}, against {against}",
        f"{wording.percent(point.share, 1)} of the MLP weight bytes, {point.megabytes:.1f} MB a token",
        *([f"does not beat the control {method_name(control['method'])}: KL {control['kl']:.4f}"] if control else []),
        speed,
        text,
        f"{point.machine}, torch {fields['torch']}",
    ]


def _kl(point: Point) -> str:
    low, high = (point.fields.get(end) for end in ("kl_low", "kl_high"))
    return f"{point.kl:.4f}" + (f" ({low:.4f}–{high:.4f})" if low is not None else "")


def settings_text(point: Point) -> str:
    """``cett 0.2, online``: the dial, and every setting that is not the method's own default."""
    method = METHODS.get(point.method)
    usual = json.loads(json.dumps(method().settings())) if method else {}  # as a row holds them
    dial = method.dial.setting if method else ""
    changed = {name: value for name, value in point.settings.items() if name == dial or value != usual.get(name)}
    return ", ".join(name if value is True else f"{name} {_spell(value)}" for name, value in changed.items())


def _spell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_spell(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _interval(point: Point) -> str:
    low, high = point.fields["speedup_low"], point.fields["speedup_high"]
    return wording.NONE if low is None else f"{low:.2f}–{high:.2f}"


_COLUMNS: Mapping[str, Callable[[Point], str]] = {
    "from": lambda point: point.source,
    "method": lambda point: method_name(point.method),
    "settings": settings_text,
    "precision": lambda point: point.precision,
    "KL, nats/token": lambda point: f"{point.kl:.4f}",
    "perplexity": lambda point: wording.NONE if point.rise is None else f"{100 * point.rise:+.1f} %",
    "agreement": lambda point: wording.percent(point.agreement, 1),
    "MLP share": lambda point: wording.percent(point.share, 1),
    "MB a token": lambda point: f"{point.megabytes:.1f}",
    "tokens/s": lambda point: wording.rate(point.rate),
    "speedup": lambda point: wording.times(point.fields["speedup"]),
    "95 %": _interval,
    "scored tokens": lambda point: f"{point.fields['scored_tokens']:,}",
}


def _colours(points: Sequence[Point]) -> dict[str, str]:
    """Of every method there is a point of, in the order of the catalogue."""
    measured = dict.fromkeys(point.method for point in points)
    known = {method: colour for method, colour in _COLOURS.items() if method in measured}
    return known | {method: _MUTED for method in measured if method not in known}


def _figure(points: Sequence[Point], quality: Axis, cost: Axis, colours: Mapping[str, str]) -> dict[str, Any]:
    places = [(cost.value(point), quality.value(point)) for point in points]
    complete = [index for index, (x, y) in enumerate(places) if x is not None and y is not None]
    precisions = dict.fromkeys(point.precision for point in points)
    groups = [(source, precision) for source in (SHIPPED, VISITOR) for precision in precisions]
    traces = [_frontier(points, places, complete, quality, cost, *group) for group in groups]
    by_trace = sorted(complete, key=lambda index: _trace_key(points[index]))
    for _, group in groupby(by_trace, key=lambda index: _trace_key(points[index])):
        # From sparse to dense whatever the axes: joined by measured tokens/s a line would follow the clock's noise.
        members = sorted(group, key=lambda index: points[index].megabytes)
        traces.append(_trace(points[members[0]], members, places, colours))
    heights = [y for index in complete if (y := places[index][1]) is not None]
    top = None if quality.more_is_better else useful_top(heights)
    return {
        "data": [trace for trace in traces if trace],
        "layout": _layout(quality, cost, top),
        "beyond": sum(y > top for y in heights) if top is not None else 0,
    }


def _trace_key(point: Point) -> tuple[int, str, str, str]:
    """In the order of drawing: a race's point lies on top. A line joins what differs in the method's dial alone."""
    dial = METHODS[point.method].dial.setting if point.method in METHODS else ""
    others = sorted(f"{name}={value}" for name, value in point.settings.items() if name != dial)
    return (SOURCES.index(point.source), point.method, point.precision, ", ".join(others))


def _trace(
    first: Point,
    members: Sequence[int],
    places: Sequence[tuple[float | None, float | None]],
    colours: Mapping[str, str],
) -> dict[str, Any]:
    """The points ``members``, of the source, method, precision and settings but for the dial of the ``first``."""
    is_visitors, is_race, colour = first.source == VISITOR, first.source == RACE, colours[first.method]
    return {
        "type": "scatter",
        "mode": "markers" if is_race or first.method == "dense" else "lines+markers",
        "name": f"{method_name(first.method)} {first.precision}"
        + ("" if first.source == SHIPPED else f", {first.source}"),
        "x": [places[index][0] for index in members],
        "y": [places[index][1] for index in members],
        "customdata": list(members),
        "meta": {"method": first.method, "precision": first.precision, "source": first.source},
        "hoverinfo": "none",
        "cliponaxis": False,
        "line": {"color": colour, "width": 1.25, "dash": "dot" if is_visitors else "solid"},
        "marker": {
            "color": _SHEET if is_visitors else colour,
            "size": 16 if is_race else 11 if first.method == "dense" else 8,
            "symbol": "star" if is_race else symbol_of(first.precision),
            "line": {"color": _INK if is_race else colour, "width": 1.5},
        },
    }


def _frontier(
    points: Sequence[Point],
    places: Sequence[tuple[float | None, float | None]],
    complete: Sequence[int],
    quality: Axis,
    cost: Axis,
    source: str,
    precision: str,
) -> dict[str, Any] | None:
    """Those of one source and precision that no other beats, compared on one text and by one machine."""
    of_source = [index for index in complete if (points[index].source, points[index].precision) == (source, precision)]
    comparable = [index for index in of_source if _comparable(points[index]) == _comparable(points[of_source[-1]])]
    if len(comparable) < 3:
        return None
    signs = [-1 if axis.more_is_better else 1 for axis in (cost, quality)]
    x, y = ([sign * (places[index][at] or 0.0) for index in comparable] for at, sign in enumerate(signs))
    best = [comparable[index] for index in frontier(x, y)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "frontier" if source == SHIPPED else f"frontier, {source}",
        "x": [places[index][0] for index in best],
        "y": [places[index][1] for index in best],
        "meta": {"source": source, "precision": precision},
        "hoverinfo": "skip",
        "line": {"color": _INK, "width": 7, "shape": "linear"},
        "opacity": 0.14,
    }


def _comparable(point: Point) -> tuple[str, str, str]:
    return (point.model, point.tokens, point.machine)


def _layout(quality: Axis, cost: Axis, top: float | None) -> dict[str, Any]:
    def axis(quantity: Axis) -> dict[str, Any]:
        better = "higher is better" if quantity.more_is_better else "lower is better"
        return {
            "title": {"text": f"{quantity.title} ({better})"},
            "gridcolor": _RULE,
            "zerolinecolor": _RULE,
            "linecolor": _RULE,
            "automargin": True,
        }

    return plot_layout(
        font_size=12,
        hoverdistance=14,
        margin={"l": 44, "r": 12, "t": 10, "b": 44},
        xaxis=axis(cost),
        yaxis={**axis(quality), **({} if top is None else {"range": [-0.04 * top, top]})},
    )
