"""The rows of a sweep, each with all that is needed to read it alone, and the tidy table they make on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..decode.choose import step_bytes
from ..methods.base import Method
from ..methods.policy import Policy
from ..support.environment import describe
from ..support.errors import UserError
from ..support.files import write_bytes
from .result import quality
from .scoring import Score
from .speed import ArmSpeed

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class SweepRow:
    """One point. ``kl`` (nats/token), ``agreement`` and the perplexities are against the dense float32 model.

    ``kl_low`` and ``kl_high`` are the 95 % interval of ``kl`` over texts, None of fewer texts than an interval takes.
    Sweeps of earlier versions are without both.

    ``mlp_share`` and ``byte_bound`` are against the dense model of the row's own precision; ``step_bytes`` are all
    weight bytes a step reads. ``cett`` and ``recall`` are means over layers. ``settings`` is JSON. ``speedup`` is over
    the dense model of the row's precision, ``speedup_n`` the pairs of blocks it is the median of, its interval over
    prompts and pairs within them; a dense row's is that of two equal arms. ``tokens_per_second`` is not this row's own
    rate but that of the dense model, timed once for all rows of the precision, times ``speedup``: rows are timed one
    after the other, and what the machine does meanwhile would come between them. None where no times were taken.
    ``date`` is the day, UTC.
    """

    model: str
    method: str
    settings: str
    precision: str
    kl: float
    kl_low: float | None
    kl_high: float | None
    agreement: float
    perplexity: float
    perplexity_float32: float
    sparsity: float
    mlp_share: float
    step_bytes: int
    byte_bound: float
    tokens_per_second: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    speedup_n: int | None
    cett: float
    recall: float
    documents: int
    scored_tokens: int
    prompt_tokens: int
    text: str
    tokens_sha256: str
    machine: str
    threads: int
    torch: str
    date: str


@dataclass(frozen=True)
class Texts:
    """What was scored: a name for a reader, the length of its prompts, and a hex id of all its token ids."""

    name: str
    prompt_tokens: int
    tokens_sha256: str


def sweep_row(
    lm: LoadedModel,
    method: Method | None,
    policy: Policy,
    scores: Sequence[Score],
    texts: Texts,
    speed: ArmSpeed | None,
) -> SweepRow:
    """The point of ``method`` (None: dense), from the scores of all texts."""
    totals = quality(scores, step_bytes(lm, policy), policy)
    environment = describe(lm.device, lm.precision)
    return SweepRow(
        model=lm.name,
        method=method.name if method else "dense",
        settings=json.dumps(method.settings() if method else {}),
        precision=lm.precision,
        kl=totals.kl,
        kl_low=totals.kl_low,
        kl_high=totals.kl_high,
        agreement=totals.agreement,
        perplexity=totals.sparse_perplexity,
        perplexity_float32=totals.dense_perplexity,
        sparsity=sum(totals.sparsity) / len(lm.blocks),
        mlp_share=totals.mlp_share,
        step_bytes=round(totals.step_bytes),
        byte_bound=totals.byte_bound,
        tokens_per_second=speed.tokens_per_second if speed else None,
        speedup=speed.speedup if speed else None,
        speedup_low=speed.low if speed else None,
        speedup_high=speed.high if speed else None,
        speedup_n=speed.n if speed else None,
        cett=sum(totals.cett) / len(lm.blocks),
        recall=sum(totals.recall) / len(lm.blocks),
        documents=totals.documents,
        scored_tokens=totals.scored_tokens,
        prompt_tokens=texts.prompt_tokens,
        text=texts.name,
        tokens_sha256=texts.tokens_sha256,
        machine=environment.get("gpu") or environment["cpu"],
        threads=environment["threads"],
        torch=environment["torch"],
        date=datetime.now(UTC).date().isoformat(),
    )


FORMATS = (".csv", ".parquet", ".json")


def check_format(path: Path) -> None:
    """Raises UserError where ``path`` has no known ending, or it is Parquet and pyarrow is not installed."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path.name}: a table is written as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError("Parquet needs pyarrow: pip install pyarrow, or write a .csv.") from error


def write_table(rows: Sequence[SweepRow], path: Path) -> None:
    """One line a row; figures of a CSV have six digits.

    Raises:
        UserError: see ``check_format``; or the file cannot be written.
    """
    import pandas

    check_format(path)
    frame = pandas.DataFrame([asdict(row) for row in rows])
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        frame.to_csv(buffer, index=False, float_format="%.6g")
    elif path.suffix == ".parquet":
        frame.to_parquet(buffer, index=False)
    else:
        frame.to_json(buffer, orient="records", indent=1)
    write_bytes(path, buffer.getvalue())
