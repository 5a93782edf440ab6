"""An experiment as HTML: the claim, the verdicts, the plots, every table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .page import page, pairs, section, table
from .theory_plots import plots

if TYPE_CHECKING:
    from ..theory.findings import Finding, Table


def theory_report(finding: Finding) -> str:
    """One finding as HTML text; everything is escaped, and nothing is fetched."""
    verdicts = "".join(f"<li>{escape(line)}</li>" for line in (*(c.verdict for c in finding.checks), *finding.notes))
    return page(
        f"The paper's theory: {finding.experiment}",
        finding.model if finding.complete else f"{finding.model}; stopped early: of what had been measured",
        [
            section("Claim", f"<p>{escape(finding.claim)}</p>"),
            section("Prediction", f"<p>{escape(finding.prediction)}</p>"),
            section("Measured", f"<ul>{verdicts}</ul>"),
            section("Settings", pairs(finding.settings)),
            *(section(each.title, plots(each) + table(_rows(each))) for each in finding.tables),
        ],
        finding.to_json(),
    )


def _rows(each: Table) -> list[dict[str, object]]:
    return [dict(zip(each.columns, row, strict=True)) for row in zip(*each.columns.values(), strict=True)]
