"""Claim 2: how far the sets of a sentence move with its history, and what a predictor loses by it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .chart import Columns, Line, Plot, View, Views, distinct, estimates, heatmap, layers, lines, matching, numbers

_CEILING, _REFERENCE = "paraphrase", "same topic"
_CHANGED = ("other topic", "other language", "random tokens")


def overlap(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("movement")
    if not table:
        return {}
    kinds = [_CEILING, *(kind for kind in distinct(table["history"]) if kind != _CEILING)]
    depth = len(matching(table, history=_CEILING))

    def drawn(column: str, title: str, *, floor: bool = False) -> View | None:
        series = [
            estimates(table, column, f"{kind} (ceiling)" if kind == _CEILING else kind, style, history=kind)
            for style, kind in enumerate(kinds)
        ]
        if floor:
            series.append(estimates(table, "floor", "another sentence (floor)", len(kinds), history=_CEILING))
        return lines(series, layers(depth), "layer", title, marks=numbers(depth), markers=False)

    return {
        "token sets": drawn("Jaccard", "Jaccard overlap", floor=True),
        "rank correlation": drawn("rank correlation", "Spearman's correlation"),
        "sentence sets": drawn("sequence-level Jaccard", "Jaccard overlap"),
    }


def recall(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("transfer")
    if not table:
        return {}
    measured = distinct(table["layer"])
    kinds = distinct(table["trained under"])

    def over_changed(column: str, trained: str | None) -> list[float]:
        """Mean over the changed histories tested under; ``trained`` None is the one tested under."""
        return [
            float(np.mean([100 * table[column][row] for kind in _CHANGED
                           for row in matching(table, layer=layer, trained_under=trained or kind, tested_under=kind)]))
            for layer in measured
        ]  # fmt: skip

    series = [
        Line("trained under the history tested", over_changed("recall", None), style=0),
        Line("trained under another history", over_changed("recall", _REFERENCE), style=1),
        Line("always the same neurons", over_changed("recall of the static guess", None), style=2),
    ]
    grid = [
        [float(np.mean([100 * table["recall"][row]
                        for row in matching(table, trained_under=trained, tested_under=tested)])) for tested in kinds]
        for trained in kinds
    ]  # fmt: skip
    places = [f"layer {layer}" for layer in measured]
    marks = [str(layer) for layer in measured]
    return {
        "by layer": lines(series, places, "layer", "recall, %", marks=marks),
        "by history": heatmap(grid, kinds, kinds, "tested under", "trained under"),
    }


PLOTS = (
    Plot(
        "overlap",
        "The same sentence after different histories",
        "Overlap with its active sets after a history on its topic. The ceiling is a paraphrase of that history.",
        "A line for each kind of history, over the layers, between ceiling and floor.",
        ("token sets", "rank correlation", "sentence sets"),
        overlap,
    ),
    Plot(
        "recall",
        "What a predictor loses under another history",
        "Share of the active neurons that DejaVu's predictor finds, on sentences it was not trained on.",
        "Recall of a predictor trained under one kind of history, tested under another.",
        ("by layer", "by history"),
        recall,
    ),
)
