"""What the preview knows: curves of quality and bytes over each method's dial, and what they keep of every layer.

They are shipped for the embedded model, measured on calibration texts by the command that ``data/expected`` names.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from ...support.files import DATA
from ..models import EMBEDDED
from .method_controls import settings

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
    return told
