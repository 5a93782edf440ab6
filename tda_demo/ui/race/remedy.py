"""What to offer where a text was damaged: the nearest setting of the same method that is expected to keep it."""

from __future__ import annotations

from typing import Any

from ...methods import Method
from ...methods.presets import MOST_KL, presets_of
from .method_controls import settings


def remedy(method: Method | None) -> dict[str, Any] | None:
    """A ``label`` and the values of the method's controls to ``set``, by name; None where nothing better is known."""
    if method is None:
        return None
    kind = type(method)
    for preset in presets_of(kind):
        better = preset.of(kind)
        if preset.name == "default" and preset.kl <= MOST_KL and better != method:
            values = {
                setting.key: setting.control_value(getattr(better, setting.field.name))
                for setting in settings()
                if setting.method is kind and setting.kind != tuple[float, ...]
            }
            return {"label": f"{kind.__name__} at its default keeps it: expected KL {preset.kl:.2g}", "set": values}
    return None
