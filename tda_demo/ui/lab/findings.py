"""A finding as the page shows it, and the files a visitor can save."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...theory.findings import Check, Finding


def shown(finding: Finding) -> dict[str, Any] | None:
    """``checks``, ``notes`` and ``files`` (label, name, type, text) of ``components.finding``; None where nothing was
    measured."""
    if not finding.checks:
        return None
    return {
        "checks": [_check(check) for check in finding.checks],
        "notes": [f"{note}." for note in finding.notes],
        "files": _files(finding),
    }


def _check(check: Check) -> dict[str, Any]:
    count = len(check.estimates)
    undecided = count - check.holds - check.opposite
    mean = check.overall
    interval = f"95 % interval {mean.low:.3g} to {mean.high:.3g}"
    return {
        "statement": check.name,
        "outcome": check.outcome,
        "told": f"holds in {check.holds} of {count} {check.cases}, the opposite in {check.opposite}, undecided in "
        f"{undecided}",
        "counts": {"holds": check.holds, "undecided": undecided, "opposite": check.opposite},
        "mean": f"mean {mean.value:.3g}, {interval}, n = {mean.n} {check.clusters}",
    }


def _files(finding: Finding) -> list[dict[str, str]]:
    # Imported here: only after a run is there something to report.
    from ...report.theory import theory_report

    stem = f"theory-{finding.experiment}"
    told = json.dumps(finding.to_json(), ensure_ascii=False, allow_nan=False)
    files = [("JSON", f"{stem}.json", "application/json", told)]
    files += [
        (f"CSV: {table.name}", f"{stem}-{table.name.replace(' ', '-')}.csv", "text/csv", table.to_csv())
        for table in finding.tables
    ]
    files.append(("report", f"{stem}.html", "text/html", theory_report(finding)))
    return [dict(zip(("label", "name", "type", "text"), file, strict=True)) for file in files]
