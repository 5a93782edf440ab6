"""Plots of claim 1: the gradient at positive activations, where activations lie, and a run of training."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from .chart import Columns, Line, Plot, View, Views, distinct, estimates, layer_marks, layers, lines, matching

_MEAN, _SHARE = "mean dL/dp at p > 0 / rms", "share of p > 0 with dL/dp > 0"
_SHARES = {"near zero": "share near zero", "exact zeros": "share of exact zeros"}


def gradient_views(tables: Mapping[str, Columns]) -> Views:
    table = tables["layers"]
    if not table:
        return {}
    loaded, *untrained = distinct(table["model"])
    tensors = distinct(table["tensor"])
    depth = len(matching(table, model=loaded, tensor=tensors[0]))
    shallow = len(matching(table, model=untrained[0], tensor="a")) if untrained else 0

    def of_loaded(column: str, factor: float = 1.0) -> list[Line]:
        return [
            estimates(table, column, f"at {tensor}", style, factor=factor, model=loaded, tensor=tensor)
            for style, tensor in enumerate(tensors)
        ]

    return {
        "mean": lines(
            of_loaded(_MEAN), layers(depth), "layer", "mean dL/dp / rms", marks=layer_marks(depth), zero=True
        ),
        "share": lines(
            of_loaded(_SHARE, 100), layers(depth), "layer", "p > 0 with dL/dp > 0, %", marks=layer_marks(depth)
        ),
        "untrained": lines(
            [estimates(table, _MEAN, name, style, model=name, tensor="a") for style, name in enumerate(untrained)],
            layers(shallow),
            "layer",
            "mean dL/dp / rms",
            marks=layer_marks(shallow),
            zero=True,
        ),
    }


def values_views(tables: Mapping[str, Columns]) -> Views:
    table = tables["histogram"]
    if not tables["layers"]:
        return {}
    centres = table["activation / rms"]
    places = [f"{centre:.2f} of the layer's rms" for centre in centres]
    marks = ["" if (index - 5) % 10 else f"{centre - 0.05:.1f}" for index, centre in enumerate(centres)]
    names = [name for name in table if name != "activation / rms"]

    def view(chosen: list[str]) -> View | None:
        series = [Line(name, [100 * share for share in table[name]], style=style) for style, name in enumerate(chosen)]
        title = "activation / root mean square of its layer"
        return lines(series, places, title, "activations, %", marks=marks, markers=False)

    loaded = [name for name in names if "untrained" not in name]
    return {
        "as loaded": view(loaded),
        "untrained": view([name for name in names if name.startswith("a, ") and name not in loaded]),
    }


def zeros_views(tables: Mapping[str, Columns]) -> Views:
    table = tables["layers"]
    if not table:
        return {}
    loaded, *untrained = distinct(table["model"])

    def view(names: list[str]) -> View | None:
        series = [
            estimates(table, column, f"{label}, {name}", 2 * place + kind, factor=100, model=name, tensor="a")
            for place, name in enumerate(names)
            for kind, (label, column) in enumerate(_SHARES.items())
        ]
        depth = max((len(line.y) for line in series), default=0)
        return lines(
            series, layers(depth), "layer", "activations, %", marks=layer_marks(depth), y_range=(0, 100), markers=False
        )

    return {"as loaded": view([loaded]), "untrained": view(untrained)}


ROOT_CAUSE_PLOTS = (
    Plot(
        "gradient",
        "The gradient at positive activations",
        "In units of the layer's root mean square gradient; above zero is what the claim says. Bands: 95 % intervals.",
        "A line over the layers: is the mean gradient at positive activations above zero?",
        ("mean", "share", "untrained"),
        gradient_views,
    ),
    Plot(
        "values",
        "Where the activations lie",
        "Over all layers, 60 bins of 0.1; what lies beyond 3 is in the last bins.",
        "A histogram of the activations.",
        ("as loaded", "untrained"),
        values_views,
    ),
    Plot(
        "zeros",
        "Zeros and near-zeros",
        "Near zero: below a tenth of the layer's root mean square, exact zeros among them.",
        "The share of activations at zero and near it, layer by layer.",
        ("as loaded", "untrained"),
        zeros_views,
    ),
)


_LOSS = "loss, nats per token"
_STYLES = {"relu": 0, "silu": 1}


def _curves(table: Columns, column: str, y_title: str, *, factor: float = 1.0, zero: bool = False) -> View | None:
    """A line a run, a colour a function: means over the layers."""
    steps = sorted(distinct(table["step"]))
    layers: dict[tuple[str, int], dict[int, list[float]]] = {}
    names = (table[name] for name in ("function", "run", "step", column))
    for function, run, step, value in zip(*names, strict=True):  # once over all rows: it is drawn again and again
        layers.setdefault((function, run), {}).setdefault(step, []).append(factor * value)
    series = [
        Line(
            f"{function}, run {run + 1}",
            [fmean(by_step[step]) for step in steps if step in by_step],
            style=_STYLES.get(function, 2),
            dash=run,
        )
        for (function, run), by_step in layers.items()
    ]
    places = [f"step {step}" for step in steps]
    marks = [str(step) if index % 3 == 0 else "" for index, step in enumerate(steps)]
    return lines(series, places, "step", y_title, marks=marks, zero=zero)


def loss_views(tables: Mapping[str, Columns]) -> Views:
    table = tables["curve"]
    return {"": _curves(table, _LOSS, "loss, nats per token") if table["step"] else None}


def sparsity_views(tables: Mapping[str, Columns]) -> Views:
    table = tables["curve"]
    if not table["step"]:
        return {}
    return {
        "near zero": _curves(table, "share near zero", "activations, %", factor=100),
        "exact zeros": _curves(table, "share of exact zeros", "activations, %", factor=100),
        "gradient": _curves(table, "mean dL/dp at p > 0 / rms", "mean dL/dp at p > 0 / rms", zero=True),
    }


TRAINING_PLOTS = (
    Plot(
        "loss",
        "The loss",
        "On text the run is not trained on.",
        "The loss, falling while the models learn: a line for each run.",
        (),
        loss_views,
    ),
    Plot(
        "sparsity",
        "Sparsity while training",
        "Means over the layers; near zero is below a tenth of the layer's root mean square.",
        "Does sparsity appear while the loss falls? A line for each run.",
        ("near zero", "exact zeros", "gradient"),
        sparsity_views,
    ),
)
