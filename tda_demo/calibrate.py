"""Offline thresholds: per layer, the score below which neurons are dropped, for every CETT target of a grid."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cett import TailCurve, score, strengths, tail_curve, thresholds
from .errors import UserError
from .feedforward import FeedForward, observed
from .files import cache_root, write_text
from .later import torch
from .progress import Progress, Report, silent

if TYPE_CHECKING:
    from .models import LoadedModel

ASSETS = Path(__file__).parent.parent / "assets"
PASSAGES = ASSETS / "passages.jsonl"
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
    lines = [json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    return _passages(PASSAGES.name, [line["text"] for line in lines if not line["held_out"]])


def read_passages(path: Path) -> Passages:
    """Passages from a text file, separated by lines holding only ``###``.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or holds no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.") from error
    documents = "\n".join("\0" if line.strip() == "###" else line for line in text.splitlines()).split("\0")
    texts = [document.strip() for document in documents if document.strip()]
    if not texts:
        raise UserError(f"{path} holds no text to calibrate on.")
    return _passages(path.name, texts)


def _passages(name: str, texts: list[str]) -> Passages:
    return Passages(name, hashlib.sha256("\0".join(texts).encode()).hexdigest(), tuple(texts))


def threshold_table(lm: LoadedModel, *, weighted: bool, report: Report = silent) -> ThresholdTable:
    """The model's table: the one in the user's cache, else the shipped one, else calibrated now and kept."""
    kept = kept_table_path(lm, weighted)
    for path in (kept, SHIPPED / kept.name):
        if (table := _load_table(path)) is not None:
            return table
    table = calibrate(lm, shipped_passages(), weighted=weighted, report=report)
    save_table(table, kept)
    return table


def kept_table_path(lm: LoadedModel, weighted: bool) -> Path:
    """Where this model's table lives in the user's cache."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", lm.name).strip("-.")[-60:]
    return cache_root() / "thresholds" / f"{name}-{lm.fingerprint[:12]}{'-weighted' if weighted else ''}.json"


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
