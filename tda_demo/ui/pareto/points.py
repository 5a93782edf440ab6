"""The points of the plot, whatever they come from: the shipped sweep, the visitor's own sweeps, their last race."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ...report.page import finite
from ..components import ASSETS

if TYPE_CHECKING:
    from ...report.record import RaceRecord

SHIPPED, OWN, RACE = "shipped sweep", "your sweeps", "your last race"
SOURCES = (SHIPPED, OWN, RACE)
_FOLDER = ASSETS / "sweeps"
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
    """From tidy fields, as ``evaluate.row.Row`` has them; the perplexities may be None."""
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


def race_point(record: RaceRecord) -> Point | None:
    """The sparse arm of a race; None where it was too short to be judged or to have read anything."""
    result = record.result
    if result.quality is None or result.sparse.weight_bytes is None:
        return None
    environment = result.environment
    machine = environment.get("gpu") or environment["cpu"]
    speed = result.speedup
    row: dict[str, Any] = {
        "model": result.model,
        "method": result.method,
        "settings": json.dumps(result.settings),
        "precision": result.precision,
        "kl": result.quality.kl,
        "agreement": result.quality.agreement,
        "perplexity": None,
        "perplexity_float32": None,
        "sparsity": sum(result.sparsity) / len(result.sparsity),
        "mlp_share": record.mlp_share,
        "step_bytes": result.sparse.weight_bytes,
        "byte_bound": result.byte_bound,
        "tokens_per_second": result.sparse.tokens_per_second,
        "speedup": speed.median if speed else None,
        "speedup_low": speed.low if speed else None,
        "speedup_high": speed.high if speed else None,
        "speedup_n": speed.n if speed else None,
        "documents": 1,
        "scored_tokens": result.quality.positions,
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


def points(own: Iterable[Mapping[str, Any]], race: RaceRecord | None) -> list[Point]:
    """All that is to be seen: shipped, then the visitor's own."""
    found = [point(SHIPPED, row) for row in shipped_rows()] + [point(OWN, row) for row in own]
    last = race_point(race) if race else None
    return [*found, last] if last else found


def _typed(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if text == "":
        return None
    number = float(text)
    return int(number) if number.is_integer() else number
