"""The plots below the race, as plotly figures of arrays. Colours are CSS variables: the browser fills in the theme's.

Every function is pure and returns what ``widgets.live_plot`` draws, JSON-ready: ``views``, a figure by name (arrays
travel as base64 typed arrays), ``summary``, the same in a sentence for who cannot see it, and ``hover``, what the tip
needs to say what is under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..widgets import plot_layout

_NEURON_COLUMNS = 1_536
_INK, _RULE, _SPARSE, _OFF = (f"var(--{name})" for name in ("ink", "rule", "tda", "plot-off"))


def layer_bars(
    kept: Sequence[float], d_ff: Sequence[int], cett: Sequence[float], target: float | None
) -> dict[str, Any]:
    """Per layer: the kept share as bars, and under them the realised CETT (``cett``, [] until known).

    ``target`` is the CETT the method aims at, None where it aims at none.
    """
    layers = list(range(len(d_ff)))
    shares = [100 * count / width for count, width in zip(kept, d_ff, strict=True)]
    top = max([0.4, 1.6 * (target or 0), *(1.08 * error for error in cett)])
    dotted = "" if target is None else f", target {target:.3g} dotted"
    caption = f"realised CETT{dotted}" if cett else "realised CETT: known after the race"
    figure = go.Figure(
        [
            go.Bar(x=layers, y=shares, marker={"color": _SPARSE, "line": {"width": 0}}, hoverinfo="none"),
            go.Scatter(
                x=layers[: len(cett)],
                y=list(cett),
                yaxis="y2",
                mode="markers",
                marker={"color": _INK, "size": 5, "symbol": "diamond"},
                hoverinfo="none",
            ),
        ],
        _layout(
            bargap=0.25,
            hovermode="x",  # above a short bar, too
            xaxis={**_axis("layer"), "anchor": "y2", "range": [-0.7, len(d_ff) - 0.3]},
            yaxis={"domain": [0.42, 1], "range": [0, 100], "tickvals": [0, 50, 100], "gridcolor": _RULE},
            yaxis2={"domain": [0, 0.3], "range": [0, top], "nticks": 4, "gridcolor": _RULE},
            margin={"l": 34, "r": 8, "t": 22, "b": 36},
            shapes=[]
            if target is None
            else [_line(x=(0, 1), xref="paper", yref="y2", y=(target, target), width=1, dash="dot")],
            annotations=[_text(0, 1, "neurons kept, %", "left"), _text(0, 0.3, caption, "left")],
        ),
    )
    errors = f"; realised CETT from {min(cett):.2f} to {max(cett):.2f}" if cett else ""
    return {
        "views": {"layers": figure.to_dict()},
        "summary": f"from {min(shares):.0f} % to {max(shares):.0f} % of a layer's neurons{errors}",
        "hover": {"kind": "layers", "cett": list(cett), **_counts(kept, d_ff)},
    }


def neuron_map(indices: Sequence[np.ndarray], d_ff: Sequence[int]) -> dict[str, Any]:
    """Layer x neuron map of the active sets; ``indices`` int [kept] per layer.

    A column is one neuron, or, where a layer has more than 1,536, the same number of neighbours: its value is the share
    of them that is active, in percent.
    """
    width = max(d_ff)
    per_column = math.ceil(width / _NEURON_COLUMNS)
    columns = math.ceil(width / per_column)
    active = np.stack([np.bincount(np.asarray(neurons) // per_column, minlength=columns) for neurons in indices])
    marks = [round(width * part / 4) for part in range(4)]
    figure = go.Figure(
        _heatmap(np.rint(100 * active / per_column), 100),
        _layout(
            xaxis={
                **_axis("neuron"),
                "range": [-0.5, columns - 0.5],
                "tickvals": [mark / per_column for mark in marks],
                "ticktext": [f"{mark:,}" for mark in marks],
            },
            yaxis=_layer_axis(len(d_ff)),
            margin={"l": 34, "r": 8, "t": 6, "b": 36},
        ),
    ).to_dict()
    figure["data"][0]["colorscale"] = [[0, _OFF], [1, _SPARSE]]  # plotly's own check knows no CSS variables in a scale
    return {
        "views": {"neurons": figure},
        "summary": f"{sum(len(neurons) for neurons in indices):,} of {sum(d_ff):,} neurons are active",
        "hover": {"kind": "neurons", "per_column": per_column, "d_ff": [int(width) for width in d_ff]},
    }


def _counts(kept: Sequence[float] | None, d_ff: Sequence[int]) -> dict[str, list[int] | None]:
    counts = None if kept is None else [round(count) for count in kept]
    return {"kept": counts, "d_ff": [int(width) for width in d_ff]}


def _heatmap(z: np.ndarray, most: int) -> go.Heatmap:
    """Fixed scale 0..``most``, in the smallest integers that hold it."""
    dtype = np.uint8 if most < 256 else np.uint16
    return go.Heatmap(z=z.astype(dtype), zmin=0, zmax=most, colorscale="Cividis", showscale=False, hoverinfo="none")


def _layout(**overrides: Any) -> dict[str, Any]:
    return plot_layout(dragmode=False, **overrides)


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "showgrid": False, "zeroline": False}


def _layer_axis(layers: int) -> dict[str, Any]:
    """Layer 0 on top."""
    step = max(1, math.ceil((layers - 1) / 4))
    return {
        "range": [layers - 0.5, -0.5],
        "tickvals": list(range(0, layers, step)),
        "showgrid": False,
        "zeroline": False,
    }


def _line(
    x: tuple[float, float],
    y: tuple[float, float],
    width: float,
    xref: str = "x",
    yref: str = "y",
    dash: str = "solid",
    colour: str = _INK,
) -> dict[str, Any]:
    line = {"color": colour, "width": width, "dash": dash}
    return {"type": "line", "x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1], "xref": xref, "yref": yref, "line": line}


def _text(x: float, y: float, text: str, side: str, xref: str = "paper") -> dict[str, Any]:
    place = {"x": x, "y": y, "xref": xref, "yref": "paper", "xanchor": side, "yanchor": "bottom"}
    return {**place, "text": text, "showarrow": False}
