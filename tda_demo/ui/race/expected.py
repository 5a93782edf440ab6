"""What the preview knows: curves of quality and bytes over each method's dial, and what they keep of every layer.

They are shipped for the embedded model, measured on calibration texts by the command that ``data/expected`` names.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from ...methods.presets import presets_of
from ...support.files import DATA
from ..models import EMBEDDED
from .method_controls import Setting, settings

FILE = DATA / "expected.json"


@cache
def expectations() -> dict[str, Any]:
    """JSON-ready, as ``assets/preview.js`` reads it: by method its dial and its curves, ``others`` being the settings
    that a curve is of, as their controls hold them. Without a file nothing is expected.
    """
    if not FILE.is_file():
        return {"model": EMBEDDED, "precision": "", "layers": 0, "dense_bytes": 1, "mlp_bytes": 0, "methods": {}}
    told = json.loads(FILE.read_text(encoding="utf-8"))
    for name, method in told["methods"].items():
        of_method = [setting for setting in settings() if setting.method.name == name]
        method["key"] = f"{name}.{method['setting']}"
        for curve in method["curves"]:
            curve["others"] = {
                setting.key: setting.control_value(curve["others"][setting.field.name])
                for setting in of_method
                if setting.field.name in curve["others"]
            }
        method["curves"] += _points(method, of_method)
    return told


def _points(method: dict[str, Any], of_method: list[Setting]) -> list[dict[str, Any]]:
    """Of presets that no curve is of: what they cost on held-out answers, known at these values alone."""
    kind = of_method[0].method
    points: dict[str, dict[str, Any]] = {}
    for preset in presets_of(kind):
        made = preset.of(kind)
        values = {setting.key: setting.control_value(getattr(made, setting.field.name)) for setting in of_method}
        others = {name: value for name, value in values.items() if name != method["key"] and value != []}
        if any(_same(others, curve["others"]) for curve in method["curves"]):
            continue
        empty = {"others": others, "values": [method["dense"]], "kl": [0], "share": [1], "step": [1], "points": True}
        point = points.setdefault(repr(others), empty)
        point["values"].append(values[method["key"]])
        point["kl"].append(preset.kl)
        point["share"].append(preset.mlp_share)
        point["step"].append(1 / preset.byte_bound)
    return list(points.values())


def _same(others: dict[str, Any], of_curve: dict[str, Any]) -> bool:
    return all(of_curve.get(name) == value for name, value in others.items())
