"""The training run: loss, sparsity and gradient, step by step, while it goes on and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .chart import Columns, Line, Plot, View, Views, distinct, lines, matching

_LOSS = "loss, nats per token"
_STYLES = {"relu": 0, "silu": 1}


def _curves(table: Columns, column: str, y_title: str, *, factor: float = 1.0, zero: bool = False) -> View | None:
    """A line a run: means over the layers."""
    steps = sorted(distinct(table["step"]))
    series = []
    for function, run in distinct(zip(table["function"], table["run"], strict=True)):
        rows = [matching(table, function=function, run=run, step=step) for step in steps]
        points = [factor * float(np.mean([table[column][row] for row in each])) for each in rows if each]
        series.append(Line(f"{function}, run {run + 1}", points, style=_STYLES.get(function, 2) + 2 * run))
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
        "On text none of the runs is trained on.",
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
