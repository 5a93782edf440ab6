"""Quality of a method on a file of texts: streamed, sharded, resumable, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..calibration.documents import Document, count_documents, read_documents
from ..calibration.sources import PASSAGES
from ..decode.choose import step_bytes
from ..methods.base import Method
from ..methods.policy import Policy
from ..support.environment import describe
from ..support.errors import UserError
from ..support.progress import Progress, Report, silent
from .bookkeeping import ALONE, Ledger, Shard, digest
from .generation import compare, write
from .result import Evaluation, quality
from .scoring import Score, score_texts

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

BATCH = 4  # texts run at once: beyond it nothing gets faster on two cores, and logits take memory
_FORMAT = 2  # of the records; part of their key


@dataclass(frozen=True)
class EvaluationSettings:
    """How texts are cut: the first ``prompt_tokens`` run dense, the next ``score_tokens`` under the method.

    ``documents`` is how many of the file's are taken, None for all; ``max_new_tokens`` is written for a reference.
    """

    prompt_tokens: int = 384
    score_tokens: int = 128
    documents: int | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        """Raises UserError where a setting is below 1."""
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Unit:
    """Texts that are always scored together, whoever does it, so that every run rounds alike.

    ``ids`` are the tokens of the texts long enough, ``prompts`` and ``references`` those that have one; ``longest`` is
    the longest text's length in tokens (no more than are needed) and the line it begins on.
    """

    ids: list[list[int]]
    prompts: list[str]
    references: list[str]
    short: int
    longest: tuple[int, int]


def evaluate(
    lm: LoadedModel,
    method: Method,
    path: Path,
    settings: EvaluationSettings | None = None,
    *,
    result: Path | None = None,
    shard: Shard = ALONE,
    report: Report = silent,
) -> Evaluation:
    """Scores ``method`` against the dense model on the texts of ``path``.

    Texts shorter than prompt and scored tokens are left out and counted. With ``result``, where the caller will write
    the outcome, what is computed is kept beside it until ``Ledger.discard``, and is not computed again.

    Raises:
        UserError: see ``read_documents`` and ``EvaluationSettings``; no text is long enough; prompt and scored tokens
            do not fit into the model's context.
    """
    settings = settings or EvaluationSettings()
    needed = settings.prompt_tokens + settings.score_tokens
    if needed > lm.context_length:
        raise UserError(
            f"{settings.prompt_tokens} prompt and {settings.score_tokens} scored tokens are {needed}; "
            f"{lm.name} takes {lm.context_length}: lower one of them."
        )
    documents = count_documents(path, settings.documents)
    policy = method.bind(lm, report, PASSAGES)
    ledger = open_ledger(lm, method, settings, result, shard)
    records = []
    report(Progress("Evaluating", 0, documents, "documents"))
    texts = islice(read_documents(path), settings.documents)
    for index, group in enumerate(in_batches(texts)):
        if shard.mine(index):
            unit = cut(lm, group, needed)
            records.append((index, _record(lm, policy, unit, settings, ledger)))
        report(Progress("Evaluating", min((index + 1) * BATCH, documents), documents, "documents"))
    in_order = [record for _, record in sorted(shard.gather(records), key=lambda numbered: numbered[0])]
    return _evaluation(lm, method, policy, path, settings, in_order)


def open_ledger(
    lm: LoadedModel, method: Method, settings: EvaluationSettings, result: Path | None, shard: Shard = ALONE
) -> Ledger:
    """What is already computed for this model, method and way of cutting; texts are told apart by their tokens."""
    key = digest(
        {
            "format": _FORMAT,
            "model": lm.fingerprint,
            "precision": lm.precision,
            "device": lm.device.type,
            "method": method.name,
            "settings": method.settings(),
            "cut": asdict(replace(settings, documents=None)),
        }
    )
    return Ledger(result, key[:16], shard.rank)


def cut(lm: LoadedModel, documents: tuple[Document, ...], needed: int) -> Unit:
    """The first ``needed`` tokens of every document that has as many."""
    tokens = [(first_tokens(lm, document.text, needed), document) for document in documents]
    referenced = [document for document in documents if document.reference is not None]
    return Unit(
        ids=[ids for ids, _ in tokens if len(ids) == needed],
        prompts=[document.text for document in referenced],
        references=[document.reference or "" for document in referenced],
        short=sum(len(ids) < needed for ids, _ in tokens),
        longest=max((len(ids), -document.line) for ids, document in tokens),
    )


def in_batches(documents: Iterator[Document]) -> Iterator[tuple[Document, ...]]:
    """The documents in order, ``BATCH`` at a time."""
    return iter(lambda: tuple(islice(documents, BATCH)), ())


def first_tokens(lm: LoadedModel, text: str, count: int) -> list[int]:
    """The first ``count`` tokens of ``text``, special ones the tokenizer adds included; fewer where it ends."""
    ids: list[int] = []
    for characters in _growing(8 * count, len(text)):
        ids = lm.tokenizer(text[:characters])["input_ids"]
        if len(ids) >= count + 32:  # the last few tokens of a text cut off may not be the whole text's
            break
    return ids[:count]


def _growing(size: int, whole: int) -> Iterator[int]:
    while size < whole:
        yield size
        size *= 4
    yield whole


def _record(
    lm: LoadedModel, policy: Policy, unit: Unit, settings: EvaluationSettings, ledger: Ledger
) -> dict[str, Any]:
    name = digest([unit.ids, unit.prompts])
    record = ledger.get(name)
    if record is None:
        ids = torch.tensor(unit.ids, device=lm.device)
        scores = score_texts(lm, [policy], ids, settings.prompt_tokens)[0] if unit.ids else []
        texts = [write(lm, policy, prompt, settings.max_new_tokens) for prompt in unit.prompts]
        record = {"scores": [asdict(text) for text in scores], "texts": texts}
        if scores or texts:  # texts that are all too short leave nothing behind
            ledger.put(name, record)
    return {**record, "name": name, "references": unit.references, "short": unit.short, "longest": unit.longest}


def _evaluation(
    lm: LoadedModel,
    method: Method,
    policy: Policy,
    path: Path,
    settings: EvaluationSettings,
    records: list[dict[str, Any]],
) -> Evaluation:
    scores = [Score(**fields) for record in records for fields in record["scores"]]
    texts = [tuple(arms) for record in records for arms in record["texts"]]
    references = [reference for record in records for reference in record["references"]]
    if not scores and not texts:
        length, line = max(tuple(record["longest"]) for record in records)
        raise UserError(
            f"No text of {path} is as long as {settings.prompt_tokens} prompt and {settings.score_tokens} scored "
            f"tokens: the longest, from line {-line}, has {length}."
        )
    totals = quality(scores, step_bytes(lm, policy), policy) if scores else None
    return Evaluation(
        model=lm.name,
        device=str(lm.device),
        precision=lm.precision,
        method=method.name,
        settings=method.settings(),
        text=path.name,
        tokens_sha256=digest([record["name"] for record in records]),
        prompt_tokens=settings.prompt_tokens,
        score_tokens=settings.score_tokens,
        short=sum(record["short"] for record in records),
        quality=totals,
        byte_bound=totals.byte_bound if totals else None,
        generation=compare(texts, references, settings.max_new_tokens) if texts else None,
        environment=describe(lm.device, lm.precision),
    )
