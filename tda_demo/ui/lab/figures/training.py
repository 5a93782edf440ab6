"""The training run: loss, sparsity and gradient, step by step, while it goes on and after."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from .chart import Columns, Line, Plot, View, Views, distinct, lines

_LOSS = "loss, nats per token"
_STYLES = {"relu": 0, "silu": 1}


def _curves(table: Columns, column: str, y_title: str, *, factor: float = 1.0, zero: bool = False) -> View | None:
    """A line a run, a colour a function: means over the layers."""
    steps = sorted(distinct(table["step"]))
    layers: dict[tuple[str, int], dict[int, list[float]]] = {}
    names = (table[name] for name in ("function", "run", "step", column))
    for function, run, step, found in zip(*names, strict=True):  # once over all rows: it is drawn again and again
        layers.setdefault((function, run), {}).setdefault(step, []).append(factor * found)
    series = [
        Line(
            f"{function}, run {run + 1}",
            [fmean(each[step]) for step in steps if step in each],
            style=_STYLES.get(function, 2),
            dash=run,
        )
        for (function, run), each in layers.items()
    ]
    places = [f"step {step}" for step in steps]
    marks = [str(step) if index % 3 == 0 else "" for index, step in enumerate(steps)]
    return lines(series, places, "step", y_title, marks=marks, zero=zero)


def loss(tables: Mapping[str, Columns]) -> Views:
    table = tables["curve"]
    return {"": _curves(table, _LOSS, "loss, nats per token") if table["step"] else None}


def sparsity(tables: Mapping[str, Columns]) -> Views:
    table = tables["curve"]
    if not table["step"]:
        return {}
    return {
        "near zero": _curves(table, "share near zero", "activations, %", factor=100),
        "exact zeros": _curves(table, "share of exact zeros", "activations, %", factor=100),
        "gradient": _curves(table, "mean dL/dp at p > 0 / rms", "mean dL/dp at p > 0 / rms", zero=True),
    }


PLOTS = (
    Plot(
        "loss",
        "The loss",
        "On text the run is not trained on.",
        "The loss, falling while the models learn: a line for each run.",
        (),
        loss,
    ),
    Plot(
        "sparsity",
        "Sparsity while training",
        "Means over the layers; near zero is below a tenth of the layer's root mean square.",
        "Does sparsity appear while the loss falls? A line for each run.",
        ("near zero", "exact zeros", "gradient"),
        sparsity,
    ),
)
