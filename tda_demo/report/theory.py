"""An experiment as one HTML file: the claim, the verdicts, every table, and the JSON they come from."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .page import page, pairs, section, table

if TYPE_CHECKING:
    from ..theory.findings import Finding, Table


def theory_report(finding: Finding) -> str:
    """One finding as HTML text; everything is escaped, and nothing is fetched."""
    early = "" if finding.complete else "<p>Stopped early: the figures are of what had been measured.</p>"
    verdicts = "".join(f"<li>{escape(line)}</li>" for line in (*(c.verdict for c in finding.checks), *finding.notes))
    return page(
        f"The paper's theory, {finding.experiment}: {finding.model}",
        finding.claim,
        [
            section("Prediction", f"<p>{escape(finding.prediction)}</p>"),
            section("Measured", f"{early}<ul>{verdicts}</ul>"),
            section("Settings", pairs(finding.settings)),
            *(section(each.title, table(_rows(each))) for each in finding.tables),
        ],
        finding.to_json(),
    )


def _rows(found: Table) -> list[dict[str, object]]:
    return [dict(zip(found.columns, row, strict=True)) for row in zip(*found.columns.values(), strict=True)]
