"""What to offer where a text was damaged: the nearest setting of the same method that is expected to keep it."""

from __future__ import annotations

from typing import Any

from ...methods import Method
from ...methods.presets import MOST_KL, presets_of
from .expected import expectations
from .method_controls import settings


def remedy(method: Method | None) -> dict[str, Any] | None:
    """A ``label``, ``why``, and the values of the method's controls to ``set``, by name; None where nothing better is
    known.

    Where a curve of the method's quality is shipped, the dial alone moves; else all goes to the method's default.
    """
    return None if method is None else _along_the_dial(method) or _default(method)


def _along_the_dial(method: Method) -> dict[str, Any] | None:
    """To the first value on the way to dense whose expected KL is at most ``MOST_KL``, short of dense itself."""
    kind, own = type(method), _controls(method)
    known = expectations()["methods"].get(kind.name)
    if known is None:
        return None
    key, dense = known["key"], known["dense"]
    for curve in known["curves"]:
        if any(own[name] != value for name, value in curve["others"].items()) or curve.get("points"):
            continue
        kept = [
            (abs(value - own[key]), value, kl)
            for value, kl in zip(curve["values"], curve["kl"], strict=True)
            if value != dense and abs(value - dense) < abs(own[key] - dense) and kl is not None and kl <= MOST_KL
        ]
        if kept:
            _, value, kl = min(kept)
            return {**_told(kind, f"{value:.3g}", kl), "set": {key: value}}
    return None


def _default(method: Method) -> dict[str, Any] | None:
    kind = type(method)
    for preset in presets_of(kind):
        better = preset.of(kind)
        if preset.name == "default" and preset.kl <= MOST_KL and better != method:
            return {**_told(kind, "default", preset.kl), "set": _moves(method, better)}
    return None


def _moves(method: Method, better: Method) -> dict[str, Any]:
    """What makes one of the other; factors a layer that were set become 1."""
    own = _controls(method)
    moves = {name: value if value != [] else [1.0] * len(own[name]) for name, value in _controls(better).items()}
    return {name: value for name, value in moves.items() if value != []}


def _told(kind: type[Method], setting: str, kl: float) -> dict[str, str]:
    return {"label": f"keep it: {kind.__name__} {setting}", "why": f"expected KL {kl:.2g} nats per token"}


def _controls(method: Method) -> dict[str, Any]:
    """What the method's controls show, by name; [] where factors a layer are not set."""
    own = [setting for setting in settings() if setting.method is type(method)]
    return {setting.key: setting.control_value(getattr(method, setting.field.name)) for setting in own}
