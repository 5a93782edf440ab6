"""Claim 3: prefix against token, neighbours against strangers, drift and echo."""

from __future__ import annotations

from collections.abc import Mapping

from .chart import Columns, Plot, View, Views, distinct, estimates, heatmap, layers, lines, matching, numbers


def swap(tables: Mapping[str, Columns]) -> Views:
    table, fits = tables.get("swap"), tables.get("regression")
    if not table or not fits:
        return {}
    depth = len(matching(fits, tokens="natural"))

    def drawn(kind: str) -> View | None:
        series = [
            estimates(table, "Jaccard", shared, style, tokens=kind, shared=shared)
            for style, shared in enumerate(distinct(table["shared"]))
        ]
        return lines(series, layers(depth), "layer", "Jaccard overlap", marks=numbers(depth), markers=False)

    coefficients = [
        estimates(fits, column, f"{label}, {kind}", 2 * row + place, tokens=kind)
        for row, kind in enumerate(distinct(fits["tokens"]))
        for place, (column, label) in enumerate((("prefix", "same prefix"), ("meaning", "similar token")))
    ]
    return {
        "natural": drawn("natural"),
        "random": drawn("random"),
        "regression": lines(
            coefficients, layers(depth), "layer", "adds to the overlap", marks=numbers(depth), zero=True, markers=False
        ),
    }


def neighbours(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("neighbours")
    if not table:
        return {}
    kinds, ways = distinct(table["tokens"]), distinct(table["fed"])
    depth = len(matching(table, tokens=kinds[0], fed=ways[0]))

    def drawn(column: str, title: str, *, strangers: bool = False) -> View | None:
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
        return lines(series, layers(depth), "layer", title, marks=numbers(depth), markers=False)

    return {"sets": drawn("Jaccard", "Jaccard overlap", strangers=True), "activations": drawn("cosine", "cosine")}


def drift(tables: Mapping[str, Columns]) -> Views:
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


def echo(tables: Mapping[str, Columns]) -> Views:
    table = tables.get("echo")
    if not table:
        return {}
    words = distinct(table["inserted"])
    series = [estimates(table, "changed", word, style, factor=100, inserted=word) for style, word in enumerate(words)]
    places = [table["tokens after"][row] for row in matching(table, inserted=words[0])]
    marks = [place.removeprefix("tokens ").removeprefix("token ").replace(" to ", "–") for place in places]
    names = [f"{place} after it" for place in places]
    return {"": lines(series, names, "tokens after the inserted word", "of the set changed, %", marks=marks)}


PLOTS = (
    Plot(
        "swap",
        "Prefix or token?",
        "Overlap of the last token's active sets where two endings share the prefix, the token, or neither.",
        "A line for each of the three, over the layers.",
        ("natural", "random", "regression"),
        swap,
    ),
    Plot(
        "neighbours",
        "Neighbours, two by two",
        "Consecutive tokens of natural text and of random tokens, fed at once and one by one.",
        "How alike neighbours are, over the layers.",
        ("sets", "activations"),
        neighbours,
    ),
    Plot(
        "drift",
        "Drift",
        "How much of a generated token's active set the prompt's set still covers.",
        "Coverage at generated token 1, 2, 4 and so on.",
        ("over tokens", "by layer"),
        drift,
    ),
    Plot(
        "echo",
        "Echo of an inserted word",
        "How much of the later tokens' active sets one inserted word changes (1 - Jaccard).",
        "What an irrelevant word changes, near it and far behind it.",
        (),
        echo,
    ),
)
