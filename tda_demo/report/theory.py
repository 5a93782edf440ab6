"""An experiment as one HTML file: the claim, the verdicts, every table, and the JSON they come from."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .page import _page, _pairs, _section, _table

if TYPE_CHECKING:
    from ..theory.findings import Finding, Table


def theory_report(finding: Finding) -> str:
    """One finding as HTML text; everything is escaped, and nothing is fetched."""
    early = "" if finding.complete else "<p>Stopped early: the figures are of what had been measured.</p>"
    verdicts = "".join(f"<li>{escape(line)}</li>" for line in (*(c.verdict for c in finding.checks), *finding.notes))
    return _page(
        f"The paper's theory, {finding.experiment}: {finding.model}",
        [
            _section("Claim", f"<p>{escape(finding.claim)}</p>"),
            _section("Prediction", f"<p>{escape(finding.prediction)}</p>"),
            _section("Measured", f"{early}<ul>{verdicts}</ul>"),
            _section("Settings", _pairs(finding.settings)),
            *(_section(table.title, _table(_rows(table))) for table in finding.tables),
        ],
        finding.to_json(),
    )


def _rows(table: Table) -> list[dict[str, object]]:
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*table.columns.values(), strict=True)]
