"""The heatmap's value: how many neurons of each layer fired for each token, as ``assets/heat.js`` reads it.

Counts travel raw, one base64 string of 16-bit integers a written token: a list that only grows costs little to send.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...methods import TDA

if TYPE_CHECKING:
    from .view import MethodView

_PROMPT_COLUMNS = 192  # a longer prompt shows its end
_ENDS = (2, 98)  # percentiles of the prompt's shares that the colour scale spans
_FULL = 2**16 - 1
_LEAST_SPAN = 0.02  # of the scale: all cells alike are no difference


def heat(arm: MethodView, d_ff: Sequence[int], most: int) -> dict[str, Any] | None:
    """JSON-ready, None before the prompt has been read; ``most`` is how many tokens may be written.

    ``prompt`` and each of ``columns`` are uint16 counts, layers of a token together; ``low`` and ``high`` are the ends
    of the colour scale, as shares 0..1 of a layer's neurons, fixed by the prompt; ``kept`` neurons a layer, null where
    they differ from step to step: what fired is then what was computed. ``marks`` is one character a position judged: 1
    where the next token is dense's.
    """
    if (read := arm.prompt) is None:
        return None
    hidden = max(0, len(read.tokens) - _PROMPT_COLUMNS)
    prompt = np.asarray(read.fired)[hidden:]
    low, high = scale(prompt, d_ff)
    return {
        "name": arm.name,
        "d_ff": [int(width) for width in d_ff],
        "hidden": hidden,
        "prompt": _packed(prompt),
        "prompt_tokens": [visible(token) for token in read.tokens[hidden:]],
        "low": low,
        "high": high,
        "room": most,
        "kept": None if read.kept is None else list(read.kept),
        "columns": [_packed(step) for step in arm.fired],
        "scores": _scores(arm),
        "marks": "".join("1" if same else "0" for same in arm.agrees),
    }


def _scores(arm: MethodView) -> dict[str, Any] | None:
    """Quantiles of the prompt's own scores, ``uint16`` shares of each layer's ``largest``, and what they depend on:
    what any threshold keeps follows from them.
    """
    if arm.prompt is None or arm.prompt.scores is None or not isinstance(arm.method, TDA):
        return None
    largest = np.maximum(arm.prompt.scores.max(axis=1), 1e-12)
    levels = np.rint(arm.prompt.scores / largest[:, None] * _FULL)
    return {"of": arm.method.score_name, "largest": [float(f"{top:.5g}") for top in largest], "levels": _packed(levels)}


def scale(prompt: np.ndarray, d_ff: Sequence[int]) -> tuple[float, float]:
    """The ends of the colour scale for ``prompt`` int64 [tokens, layers], shares 0..1."""
    low, high = np.percentile(prompt / np.asarray(d_ff), _ENDS)
    high = max(high, low + _LEAST_SPAN)
    return round(float(low), 4), round(float(high), 4)


def visible(token: str) -> str:
    """A token's text with its spaces and control characters made visible."""
    shown = token.translate({ord("\n"): "↵", ord("\t"): "⇥", ord(" "): "␣"})
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown) or "∅"


def _packed(counts: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(counts, dtype="<u2").tobytes()).decode("ascii")
