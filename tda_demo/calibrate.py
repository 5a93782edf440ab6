"""Offline thresholds: per layer, the score below which neurons are dropped, for every CETT target of a grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cett import TailCurve, score, strengths, tail_curve, thresholds
from .documents import PASSAGES, Document, count_documents, passages, read_documents
from .feedforward import FeedForward, observed
from .files import ASSETS, cache_root, kept_name, write_text
from .later import torch
from .model.precisions import REFERENCE
from .progress import Progress, Report, silent

if TYPE_CHECKING:
    from .models import LoadedModel

SHIPPED = ASSETS / "thresholds"
TARGETS = tuple(round(0.01 * step, 2) for step in range(61))  # the page's slider, step by step
_MAX_TOKENS = 1024  # of a passage


@dataclass(frozen=True)
class Passages:
    """Texts to calibrate on, with the name and hash a table remembers them by."""

    name: str
    sha256: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class ThresholdTable:
    """``thresholds[layer][i]`` is the threshold for ``targets[i]``; the rest says what it was made from."""

    model: str
    fingerprint: str
    weighted: bool
    data: str
    data_sha256: str
    passages: int
    tokens: int
    precision: str
    targets: tuple[float, ...]
    thresholds: tuple[tuple[float, ...], ...]

    def at(self, cett: float) -> np.ndarray:
        """Thresholds of every layer, float64 [layers]; linear between the grid's targets."""
        return np.array([np.interp(cett, self.targets, layer) for layer in self.thresholds])


def shipped_passages() -> Passages:
    """The project's own passages, those held out for scoring left out."""
    return _passages(PASSAGES.name, passages(held_out=False))


def read_passages(path: Path) -> Passages:
    """Every document of the file at ``path``.

    Raises:
        UserError: see ``documents.read_documents``; or there is no document.
    """
    count_documents(path, 1)
    return _passages(path.name, read_documents(path))


def _passages(name: str, documents: Iterable[Document]) -> Passages:
    texts = tuple(document.text for document in documents)
    return Passages(name, hashlib.sha256("\0".join(texts).encode()).hexdigest(), texts)


def threshold_table(lm: LoadedModel, *, weighted: bool, report: Report = silent) -> ThresholdTable:
    """The table of the model at its precision: kept in the user's cache, else shipped, else calibrated now and kept.

    The shipped ones are of the embedded model in float32 and serve it at every precision, so that its first race need
    not wait: its own thresholds in bfloat16, int8 and nf4 differ from them by at most 0.1, 0.7 and 2.4 % in any layer
    (at targets of 0.1, 0.2 and 0.4, n = 1,371 tokens of 6 passages). ``tda_demo calibrate`` keeps its own.
    """
    kept = kept_table_path(lm, weighted)
    for path in (kept, SHIPPED / _table_name(lm, weighted, REFERENCE)):
        if (table := _load_table(path)) is not None:
            return table
    table = calibrate(lm, shipped_passages(), weighted=weighted, report=report)
    save_table(table, kept)
    return table


def kept_table_path(lm: LoadedModel, weighted: bool) -> Path:
    """Where the table of this model at its precision lives in the user's cache."""
    return cache_root() / "thresholds" / _table_name(lm, weighted, lm.precision)


def _table_name(lm: LoadedModel, weighted: bool, precision: str) -> str:
    return f"{kept_name(lm.name, lm.fingerprint, precision, *(['weighted'] if weighted else []))}.json"


def save_table(table: ThresholdTable, path: Path) -> None:
    """Writes the table as JSON, a layer a line."""
    lines = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in asdict(table).items()]
    rows = ",\n".join(json.dumps([float(f"{value:.6g}") for value in layer]) for layer in table.thresholds)
    lines[-1] = f'"thresholds": [\n{rows}\n]'
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _load_table(path: Path) -> ThresholdTable | None:
    """The table at ``path``; None where there is none or it is damaged, so that it is made anew."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return ThresholdTable(**{key: _frozen(value) for key, value in fields.items()})
    except (OSError, ValueError, TypeError):
        return None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def calibrate(
    lm: LoadedModel, passages: Passages, *, weighted: bool = False, report: Report = silent
) -> ThresholdTable:
    """Runs every passage through the dense model and finds each layer's thresholds (``cett.thresholds``)."""
    curves: list[list[TailCurve]] = [[] for _ in lm.blocks]

    def see(block: FeedForward, activations: torch.Tensor) -> None:
        scores = score(strengths(activations, block.output_norms if weighted else None))
        curves[block.layer].append(tail_curve(block, activations, scores))

    report(Progress(f"Calibrating {lm.name}", 0, len(passages.texts), "passages"))
    for done, text in enumerate(passages.texts, start=1):
        ids = lm.tokenizer(text, return_tensors="pt", truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        with torch.inference_mode(), observed(lm.blocks, see):
            lm.model(input_ids=ids.to(lm.device), use_cache=False, logits_to_keep=1)
        report(Progress(f"Calibrating {lm.name}", done, len(passages.texts), "passages"))
    targets = np.array(TARGETS)
    return ThresholdTable(
        model=lm.name,
        fingerprint=lm.fingerprint,
        weighted=weighted,
        data=passages.name,
        data_sha256=passages.sha256,
        passages=len(passages.texts),
        tokens=sum(curve.tokens for curve in curves[0]),
        precision=lm.precision,
        targets=TARGETS,
        thresholds=tuple(tuple(thresholds(layer, targets).tolist()) for layer in curves),
    )
