"""The points of the plot, whatever they come from: the shipped sweep, the visitor's own sweeps, their last race."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ...report.page import finite
from ...support.files import DATA

if TYPE_CHECKING:
    from ...race.result import MethodResult, RaceResult
    from ...report.race import RaceRecord

SHIPPED, VISITOR, RACE = "shipped sweep", "your sweeps", "your last race"
SOURCES = (SHIPPED, VISITOR, RACE)
_FOLDER = DATA / "sweeps"
_TEXTS = ("model", "method", "settings", "precision", "text", "tokens_sha256", "machine", "torch", "date")


@dataclass(frozen=True)
class Point:
    """One point. ``share`` of the MLP weight bytes of its own precision, ``megabytes`` a step reads of all weights.

    ``kl`` nats/token, ``rise`` of the perplexity and ``agreement`` 0..1, against the float32 model on the text named by
    ``tokens``; a race's against the dense arm on the race's own text. None is what was not measured. ``fields`` is
    the tidy row it comes from.
    """

    source: str
    model: str
    method: str
    settings: Mapping[str, Any]
    precision: str
    share: float | None
    megabytes: float
    rate: float | None
    kl: float
    rise: float | None
    agreement: float
    tokens: str
    machine: str
    fields: Mapping[str, Any]


def point(source: str, row: Mapping[str, Any]) -> Point:
    """From tidy fields, as ``evaluate.sweep_table.SweepRow`` has them; the perplexities may be None."""
    row = finite(row)
    rise = row["perplexity"] / row["perplexity_float32"] - 1 if row["perplexity"] else None
    return Point(
        source=source,
        model=row["model"],
        method=row["method"],
        settings=json.loads(row["settings"]),
        precision=row["precision"],
        share=row["mlp_share"],
        megabytes=row["step_bytes"] / 1e6,
        rate=row["tokens_per_second"],
        kl=row["kl"],
        rise=rise,
        agreement=row["agreement"],
        tokens=row["tokens_sha256"],
        machine=f"{row['machine']}, {row['threads']} threads",
        fields=row,
    )


def race_points(record: RaceRecord) -> list[Point]:
    """The method's arm of a race, and its rival's; without those too short to be judged or to have read anything."""
    rival = record.result.rival
    arms = [(record.result, record.mlp_share), *([(rival, record.rival_mlp_share)] if rival else [])]
    measured = (_race_point(record, arm, mlp_share) for arm, mlp_share in arms)
    return [point for point in measured if point]


def _race_point(record: RaceRecord, arm: RaceResult | MethodResult, mlp_share: float | None) -> Point | None:
    result = record.result
    if arm.quality is None or arm.sparse.weight_bytes is None:
        return None
    environment = result.environment
    machine = environment.get("gpu") or environment["cpu"]
    speed = arm.speedup
    row: dict[str, Any] = {
        "model": result.model,
        "method": arm.method,
        "settings": json.dumps(arm.settings),
        "precision": result.precision,
        "kl": arm.quality.kl,
        "agreement": arm.quality.agreement,
        "perplexity": None,
        "perplexity_float32": None,
        "sparsity": sum(arm.sparsity) / len(arm.sparsity),
        "mlp_share": mlp_share,
        "step_bytes": arm.sparse.weight_bytes,
        "byte_bound": arm.byte_bound,
        "tokens_per_second": arm.sparse.tokens_per_second,
        "speedup": speed.ratio if speed else None,
        "speedup_low": speed.low if speed else None,
        "speedup_high": speed.high if speed else None,
        "speedup_n": speed.n if speed else None,
        "documents": 1,
        "scored_tokens": arm.quality.positions,
        "prompt_tokens": result.prompt_tokens,
        "text": "the race's own dense text",
        "tokens_sha256": "",
        "machine": machine,
        "threads": environment["threads"],
        "torch": environment["torch"],
        "date": record.date,
    }
    return point(RACE, row)


@cache
def shipped_rows() -> tuple[dict[str, Any], ...]:
    """Every row of the sweeps that come with the project; () where there are none."""
    rows: list[dict[str, Any]] = []
    for path in sorted(_FOLDER.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows += [{name: _typed(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    return tuple(rows)


def points(rows: Iterable[Mapping[str, Any]], race: RaceRecord | None) -> list[Point]:
    """All that is to be seen: shipped, then the visitor's own."""
    sweeps = [point(SHIPPED, row) for row in shipped_rows()] + [point(VISITOR, row) for row in rows]
    return sweeps + (race_points(race) if race else [])


def _typed(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if text == "":
        return None
    number = float(text)
    return int(number) if number.is_integer() else number
