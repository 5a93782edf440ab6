"""A sweep as HTML: quality against cost in every view, and every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..methods.controls import not_beating
from ..model.precision import symbol_of
from ..stats.metrics import frontier
from . import svg
from .page import figure, finite, page, section, table

Fields = Mapping[str, Any]  # of an ``evaluate.sweep_table.SweepRow``

# Title, value of a row (None where it has none), whether more is better.
_COSTS: Sequence[tuple[str, Callable[[Fields], float | None], bool]] = (
    ("MB a step reads", lambda row: row["step_bytes"] / 1e6, False),
    ("share of the MLP bytes, %", lambda row: 100 * row["mlp_share"], False),
    ("tokens/s (dense's × measured speedup)", lambda row: row["tokens_per_second"], True),
)
_QUALITIES: Sequence[tuple[str, Callable[[Fields], float | None], bool]] = (
    ("KL, nats/token", lambda row: row["kl"], False),
    ("perplexity above float32, %", lambda row: _rise(row), False),
    ("agreement, %", lambda row: 100 * row["agreement"], True),
)


def sweep_report(rows: Sequence[Fields]) -> str:
    """Rows, at least one, as HTML text; whatever a field says is escaped, and nothing is fetched."""
    rows = [finite(row) for row in rows]
    first = rows[0]
    return page(
        "Sweep: " + ", ".join(sorted({str(row["model"]) for row in rows})),
        f"{first['date']}, {first['machine']}, {first['threads']} threads; {first['text']}",
        [
            _key(rows),
            *(_views(rows, quality) for quality in _QUALITIES),
            section("Every row", table(rows)),
            _controls(rows),
        ],
        rows,
    )


def _key(rows: Sequence[Fields]) -> str:
    """What colours and shapes say, once for all plots: a dozen methods in four precisions are too many for each."""
    methods = [svg.Series(method, [], colour) for method, colour in _colours(rows).items()]
    precisions = [
        svg.Series(precision, [], "currentColor", shape=symbol_of(precision), joined=False)
        for precision in dict.fromkeys(row["precision"] for row in rows)
    ]
    frontier_line = svg.Series("frontier: no other point beats these", [], "currentColor", shape="")
    return svg.legend([*methods, frontier_line]) + svg.legend(precisions)


def _controls(rows: Sequence[Fields]) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in not_beating(rows))
    return section("No better than a control", f"<ul>{sentences}</ul>" if sentences else "")


def _colours(rows: Sequence[Fields]) -> dict[str, str]:
    """A colour a method, in the order in which they first appear."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {method: svg.COLOURS[index % len(svg.COLOURS)] for index, method in enumerate(methods)}


def _views(rows: Sequence[Fields], quality: Any) -> str:
    drawn = "".join(_view(rows, quality, cost) for cost in _COSTS)
    return section(quality[0].split(",")[0], f'<div class="plots">{drawn}</div>')


def _view(rows: Sequence[Fields], quality: Any, cost: Any) -> str:
    (y_label, y_of, y_more), (x_label, x_of, x_more) = quality, cost
    shown = [(row, x, y) for row in rows if (x := x_of(row)) is not None and (y := y_of(row)) is not None]
    if not shown:
        return ""
    top = None if y_more else svg.useful_top([y for _, _, y in shown])
    above = 0 if top is None else sum(y > top for _, _, y in shown)
    shown = [point for point in shown if top is None or point[2] <= top]
    beyond = f"; above it {above} more in the table" if above else ""
    colours = _colours(rows)
    groups: dict[tuple[str, str], list[tuple[Fields, float, float]]] = {}
    for row, x, y in sorted(shown, key=lambda point: point[0]["step_bytes"]):  # sparse to dense: times are noisy
        groups.setdefault((row["method"], row["precision"]), []).append((row, x, y))
    series = [
        svg.Series(
            f"{method}, {precision}",
            [(x, y) for _, x, y in group],
            colours[method],
            [f"{method} {row['settings']}, {precision}: {x:.4g}, {y:.4g}" for row, x, y in group],
            symbol_of(precision),
            joined=method != "dense",
        )
        for (method, precision), group in groups.items()
    ]
    return figure(f"Against {x_label}{beyond}", svg.plot([*series, _best(shown, x_more, y_more)], x_label, y_label))


def _best(shown: Sequence[tuple[Fields, float, float]], x_more: bool, y_more: bool) -> svg.Series:
    """The points no other beats, of those scored on the first row's text by its machine."""
    alike = [(x, y) for row, x, y in shown if _comparable(row) == _comparable(shown[0][0])]
    best = frontier([-x if x_more else x for x, _ in alike], [-y if y_more else y for _, y in alike])
    return svg.Series("frontier", [alike[index] for index in best], "currentColor", shape="")


def _comparable(row: Fields) -> tuple[Any, ...]:
    return row["model"], row["tokens_sha256"], row["machine"]


def _rise(row: Fields) -> float | None:
    return 100 * (row["perplexity"] / row["perplexity_float32"] - 1) if row["perplexity"] else None
