"""Plots of claims 2 and 3, how active sets move: with the history, with the prefix, along a text, after a word."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .chart import Columns, Line, Plot, View, Views, distinct, estimates, heatmap, layer_marks, layers, lines, matching

_CEILING, _REFERENCE = "paraphrase", "same topic"
_CHANGED = ("other topic", "other language", "random tokens")


def overlap_views(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("movement")
    if not table:
        return {}
    kinds = [_CEILING, *(kind for kind in distinct(table["history"]) if kind != _CEILING)]
    depth = len(matching(table, history=_CEILING))

    def view(column: str, title: str, *, floor: bool = False) -> View | None:
        series = [
            estimates(table, column, f"{kind} (ceiling)" if kind == _CEILING else kind, style, history=kind)
            for style, kind in enumerate(kinds)
        ]
        if floor:
            series.append(estimates(table, "floor", "another sentence (floor)", len(kinds), history=_CEILING))
        return lines(series, layers(depth), "layer", title, marks=layer_marks(depth), markers=False)

    return {
        "token sets": view("Jaccard", "Jaccard overlap", floor=True),
        "rank correlation": view("rank correlation", "Spearman's correlation"),
        "sentence sets": view("sequence-level Jaccard", "Jaccard overlap"),
    }


def recall_views(tables: Mapping[str, Columns]) -> Views:
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


UNCERTAINTY_PLOTS = (
    Plot(
        "overlap",
        "The same sentence after different histories",
        "Overlap with its active sets after a history on its topic. The ceiling is a paraphrase of that history.",
        "A line for each kind of history, over the layers, between ceiling and floor.",
        ("token sets", "rank correlation", "sentence sets"),
        overlap_views,
    ),
    Plot(
        "recall",
        "What a predictor loses under another history",
        "Share of the active neurons that DejaVu's predictor finds, on sentences it was not trained on.",
        "Recall of a predictor trained under one kind of history, tested under another.",
        ("by layer", "by history"),
        recall_views,
    ),
)


def swap_views(tables: Mapping[str, Columns]) -> Views:
    table, fits = tables.get("swap"), tables.get("regression")
    if not table or not fits:
        return {}
    depth = len(matching(fits, tokens="natural"))

    def view(kind: str) -> View | None:
        series = [
            estimates(table, "Jaccard", shared, style, tokens=kind, shared=shared)
            for style, shared in enumerate(distinct(table["shared"]))
        ]
        return lines(series, layers(depth), "layer", "Jaccard overlap", marks=layer_marks(depth), markers=False)

    coefficients = [
        estimates(fits, column, f"{label}, {kind}", 2 * row + place, tokens=kind)
        for row, kind in enumerate(distinct(fits["tokens"]))
        for place, (column, label) in enumerate((("prefix", "same prefix"), ("meaning", "similar token")))
    ]
    return {
        "natural": view("natural"),
        "random": view("random"),
        "regression": lines(
            coefficients,
            layers(depth),
            "layer",
            "adds to the overlap",
            marks=layer_marks(depth),
            zero=True,
            markers=False,
        ),
    }


def neighbours_views(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("neighbours")
    if not table:
        return {}
    kinds, ways = distinct(table["tokens"]), distinct(table["fed"])
    depth = len(matching(table, tokens=kinds[0], fed=ways[0]))

    def view(column: str, title: str, *, strangers: bool = False) -> View | None:
        series = [
            estimates(table, column, f"{kind}, {way}", 2 * row + place, tokens=kind, fed=way)
            for row, kind in enumerate(kinds)
            for place, way in enumerate(ways)
        ]
        if strangers:
            apart = "Jaccard of different sequences"
            series += [
                estimates(table, apart, f"{kind}, different sequences", 4 + row, tokens=kind, fed=ways[0])
                for row, kind in enumerate(kinds)
            ]
        return lines(series, layers(depth), "layer", title, marks=layer_marks(depth), markers=False)

    return {"sets": view("Jaccard", "Jaccard overlap", strangers=True), "activations": view("cosine", "cosine")}


def drift_views(tables: Mapping[str, Columns]) -> Views:
    table, by_layer = tables.get("drift"), tables.get("drift by layer")
    if not table or not by_layer:
        return {}
    series = [
        estimates(
            table, column, f"by the set of its {column}" if style == 0 else "by another prompt's", style, factor=100
        )
        for style, column in enumerate(("own prompt", "another prompt"))
    ]
    ends = [str(end) for end in table["up to token"]]
    spans = [name for name in by_layer if name != "layer"]
    rows = [[100 * share for share in by_layer[span]] for span in spans]
    depth = len(by_layer["layer"])
    places = list(table["tokens"])
    return {
        "over tokens": lines(series, places, "up to generated token", "of the set covered, %", marks=ends),
        "by layer": heatmap(
            [list(column) for column in zip(*rows, strict=True)], spans, layers(depth), "generated tokens", "layer"
        ),
    }


def echo_views(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("echo")
    if not table:
        return {}
    words = distinct(table["inserted"])
    series = [estimates(table, "changed", word, style, factor=100, inserted=word) for style, word in enumerate(words)]
    places = [table["tokens after"][row] for row in matching(table, inserted=words[0])]
    marks = [place.removeprefix("tokens ").removeprefix("token ").replace(" to ", "–") for place in places]
    names = [f"{place} after it" for place in places]
    return {"": lines(series, names, "tokens after the inserted word", "of the set changed, %", marks=marks)}


INERTIA_PLOTS = (
    Plot(
        "swap",
        "Prefix or token?",
        "Overlap of the last token's active sets where two endings share the prefix, the token, or neither.",
        "A line for each of the three, over the layers.",
        ("natural", "random", "regression"),
        swap_views,
    ),
    Plot(
        "neighbours",
        "Neighbours, two by two",
        "Consecutive tokens of natural text and of random tokens, fed at once and one by one.",
        "How alike neighbours are, over the layers.",
        ("sets", "activations"),
        neighbours_views,
    ),
    Plot(
        "drift",
        "Drift",
        "How much of a generated token's active set the prompt's set still covers.",
        "Coverage at generated token 1, 2, 4 and so on.",
        ("over tokens", "by layer"),
        drift_views,
    ),
    Plot(
        "echo",
        "Echo of an inserted word",
        "How much of the later tokens' active sets one inserted word changes (1 - Jaccard).",
        "What an irrelevant word changes, near it and far behind it.",
        (),
        echo_views,
    ),
)
