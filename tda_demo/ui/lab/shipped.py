"""What the lab opens with: the experiments at their default sizes on the embedded model, by ``theory X --json``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...support.files import DATA
from ..widgets import Outputs, sentence
from .figures import PLOTS
from .figures.chart import value
from .runs import finding_value

if TYPE_CHECKING:
    from ...theory.findings import Finding

FOLDER = DATA / "findings"


def shipped_finding(experiment: str) -> Finding | None:
    """What ships of the experiment, None where nothing does."""
    from ...theory.findings import of_json

    path = FOLDER / f"{experiment}.json"
    return of_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def opening(experiment: str) -> Outputs:
    """The panel of ``experiment`` with what ships, by component name; nothing where nothing does."""
    if (finding := shipped_finding(experiment)) is None:
        return {}
    tables: dict[str, Any] = {table.name: table.columns for table in finding.tables}
    plots = {plot.name: value(plot.draw(tables)) for plot in PLOTS.get(experiment, ())}
    told = sentence(
        f"Shipped with the page: measured on {finding.model}. Measure to see it here, on your model or text."
    )
    return {"finding": finding_value(finding), "notice": told, **plots}
