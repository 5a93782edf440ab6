"""What an experiment found: the claim, what was measured, and a verdict computed from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any, Literal

import numpy as np

from ..stats.estimates import Estimate, mean, means

Outcome = Literal["supported", "contradicted", "mixed", "no effect"]


@dataclass(frozen=True)
class Check:
    """One question a claim answers, asked of several ``cases`` (layers, mostly).

    ``name`` is the statement tested: value above ``null``. It holds in a case whose 95 % interval lies wholly above
    ``null``, the opposite holds where the interval lies wholly below, and anything else is undecided. ``overall`` is
    the same quantity averaged over the cases, ``clusters`` what its n counts.
    """

    name: str
    cases: str
    clusters: str
    null: float
    estimates: tuple[Estimate, ...]
    overall: Estimate

    @property
    def holds(self) -> int:
        return sum(estimate.low > self.null for estimate in self.estimates)

    @property
    def opposite(self) -> int:
        return sum(estimate.high < self.null for estimate in self.estimates)

    @property
    def outcome(self) -> Outcome:
        """Supported or contradicted by more than half of the cases and by their mean; no effect where the mean is
        undecided and no more cases are decided than chance alone decides; else mixed."""
        count, mean = len(self.estimates), self.overall
        if 2 * self.holds > count and mean.low > self.null:
            return "supported"
        if 2 * self.opposite > count and mean.high < self.null:
            return "contradicted"
        if mean.low <= self.null <= mean.high and self.holds + self.opposite <= _by_chance(count):
            return "no effect"
        return "mixed"

    @property
    def verdict(self) -> str:
        count, mean = len(self.estimates), self.overall
        undecided = count - self.holds - self.opposite
        return (
            f"{self.name}: {self.outcome}; holds in {self.holds} of {count} {self.cases}, the opposite in "
            f"{self.opposite}, undecided in {undecided}; mean {_short(mean.value)} "
            f"({_short(mean.low)} to {_short(mean.high)}), n = {mean.n} {self.clusters}"
        )


@dataclass(frozen=True)
class Table:
    """Columns of equal length, by name, ready for a plot or a spreadsheet."""

    name: str
    title: str
    columns: Mapping[str, Sequence[Any]]

    def to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*self.columns.values(), strict=True))
        return text.getvalue()


@dataclass(frozen=True)
class Finding:
    """The result of one experiment.

    ``claim`` states the paper's claim in two sentences, ``prediction`` what must be seen if it is true. ``complete`` is
    False where Stop ended the experiment early: the numbers are then of what had been measured, and ``checks`` is
    empty where that was too little.
    """

    experiment: str
    claim: str
    prediction: str
    model: str
    settings: Mapping[str, Any]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    complete: bool = True

    @property
    def verdict(self) -> str:
        """The checks' verdicts, then the notes, as sentences."""
        if not self.checks:
            return "Stopped before enough was measured to say anything."
        early = () if self.complete else ("Stopped early",)
        return ". ".join((*early, *(check.verdict for check in self.checks), *self.notes)) + "."

    def to_json(self) -> dict[str, Any]:
        """Plain types; every check carries its counts, outcome and verdict."""
        checks = [
            {**asdict(check), "holds": check.holds, "opposite": check.opposite, "outcome": check.outcome}
            | {"verdict": check.verdict}
            for check in self.checks
        ]
        return {
            "experiment": self.experiment,
            "claim": self.claim,
            "prediction": self.prediction,
            "model": self.model,
            "settings": dict(self.settings),
            "complete": self.complete,
            "verdict": self.verdict,
            "checks": checks,
            "notes": list(self.notes),
            "tables": {
                table.name: {"title": table.title, "columns": {k: list(v) for k, v in table.columns.items()}}
                for table in self.tables
            },
        }


def of_json(fields: Mapping[str, Any]) -> Finding:
    """The finding that ``Finding.to_json`` told."""
    checks = [
        Check(
            **{name: check[name] for name in ("name", "cases", "clusters", "null")},
            estimates=tuple(Estimate(**estimate) for estimate in check["estimates"]),
            overall=Estimate(**check["overall"]),
        )
        for check in fields["checks"]
    ]
    tables = [Table(name, table["title"], table["columns"]) for name, table in fields["tables"].items()]
    plain = {name: fields[name] for name in ("experiment", "claim", "prediction", "model", "settings", "complete")}
    return Finding(**plain, checks=tuple(checks), notes=tuple(fields["notes"]), tables=tuple(tables))


def summary(finding: Finding) -> str:
    """The finding as a few lines of text."""
    lines = [f"{finding.experiment} on {finding.model}", "", f"Claim: {finding.claim}"]
    lines += [f"Prediction: {finding.prediction}", ""]
    if not finding.complete or not finding.checks:
        lines.append(finding.verdict if not finding.checks else "Stopped early.")
    lines += [f"- {line}" for line in (*(check.verdict for check in finding.checks), *finding.notes)]
    return "\n".join(lines)


def check_above_zero(name: str, cases: str, clusters: str, values: np.ndarray) -> Check:
    """The check whether ``values``, float64 [clusters, cases], lie above zero in every case."""
    return Check(name, cases, clusters, 0.0, tuple(means(values)), mean(values.mean(axis=1)))


def columns(prefix: str, estimates: Sequence[Estimate]) -> dict[str, list[float]]:
    """Three columns of a table: the values, and the ends of their intervals."""
    return {
        prefix: [estimate.value for estimate in estimates],
        f"{prefix} low": [estimate.low for estimate in estimates],
        f"{prefix} high": [estimate.high for estimate in estimates],
    }


def _by_chance(cases: int) -> int:
    """The most cases that 95 % intervals decide by chance in 39 of 40 repetitions, if the cases are independent."""
    probability = 0.0
    for count in range(cases + 1):
        probability += comb(cases, count) * 0.05**count * 0.95 ** (cases - count)
        if probability >= 0.975:
            return count
    return cases


def _short(value: float) -> str:
    return f"{value:.3g}"
