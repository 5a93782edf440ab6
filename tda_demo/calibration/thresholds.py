"""Offline thresholds: per layer, the score below which neurons are dropped, for every CETT target of a grid."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.feedforward import FeedForward
from ..model.hooks import observe
from ..model.precision import REFERENCE
from ..support.files import kept_name
from ..support.lazy import torch
from ..support.progress import Progress, Report, silent
from .cett import TailCurve, score, strengths, tail_curve, thresholds
from .parts import Parts
from .sources import Source, Text, inputs
from .tables import KeptTable, json_rows, significant

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

TARGETS = tuple(round(0.01 * step, 2) for step in range(71))  # the page's slider, step by step
_MAX_TOKENS = 1024  # of a text


@dataclass(frozen=True)
class ThresholdTable:
    """``thresholds[layer][i]`` is the threshold for ``targets[i]``; the rest says what it was made from."""

    model: str
    fingerprint: str
    weighted: bool
    data: str
    data_sha256: str
    texts: int
    tokens: int
    precision: str
    targets: tuple[float, ...]
    thresholds: tuple[tuple[float, ...], ...]

    def at(self, cett: float) -> np.ndarray:
        """Thresholds of every layer, float64 [layers]; linear between the grid's targets."""
        return self.at_each(np.full(len(self.thresholds), cett))

    def at_each(self, cett: np.ndarray) -> np.ndarray:
        """Every layer's threshold at its own CETT, float64 [layers]; linear between the grid's targets."""
        return np.array(
            [np.interp(target, self.targets, layer) for target, layer in zip(cett, self.thresholds, strict=True)]
        )


def threshold_table(lm: LoadedModel, *, weighted: bool, source: Source, report: Report = silent) -> ThresholdTable:
    """The table of the model at its precision: kept in the user's cache, else shipped, else calibrated now and kept."""
    return kept_thresholds(lm, weighted, source).get(lambda: calibrate(lm, source, weighted=weighted, report=report))


def kept_thresholds(lm: LoadedModel, weighted: bool, source: Source) -> KeptTable[ThresholdTable]:
    """Where the table of the model at its precision, made of ``source``, is kept.

    The shipped ones are of the embedded model in float32 and serve it at every precision, so that its first race need
    not wait: its own thresholds in bfloat16, int8 and nf4 differ from them by at most 0.1, 0.7 and 2.4 % in any layer
    (at targets of 0.1, 0.2 and 0.4, n = 1,371 tokens of 6 passages). ``tda_demo calibrate`` keeps its own.
    """
    kind = [source.name, *(["weighted"] if weighted else [])]
    return KeptTable(
        "thresholds",
        kept_name(lm.name, lm.fingerprint, lm.precision, *kind),
        _parse,
        _text,
        shipped_name=kept_name(lm.name, lm.fingerprint, REFERENCE, *kind),
    )


def _text(table: ThresholdTable) -> str:
    """A JSON object with a layer a line."""
    lines = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in asdict(table).items()]
    lines[-1] = f'"thresholds": {json_rows(significant(layer, 6) for layer in table.thresholds)}'
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _parse(fields: Any) -> ThresholdTable:
    table = ThresholdTable(**{key: _frozen(value) for key, value in fields.items()})
    layers = len(table.thresholds)
    if np.array(table.thresholds, dtype=np.float64).shape != (layers, len(table.targets)):
        raise ValueError("a layer has not one threshold a target")
    return table


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def calibrate(lm: LoadedModel, source: Source, *, weighted: bool = False, report: Report = silent) -> ThresholdTable:
    """Runs every text of ``source`` through the dense model and finds each layer's thresholds (``cett.thresholds``)."""
    texts = source.texts(lm, longest=_MAX_TOKENS, report=report)
    parts = Parts(f"{kept_thresholds(lm, weighted, source).name}.{texts.sha256[:8]}")
    curves: list[list[TailCurve]] = [[] for _ in lm.blocks]
    report(Progress(f"Calibrating {lm.name}", 0, len(texts.texts), texts.unit))
    for place, text in enumerate(texts.texts):
        arrays = parts.get(place, partial(_curves, lm, text, weighted))
        for layer, of_layer in enumerate(curves):
            errors = arrays[f"errors {layer}"].astype(np.float64)
            scores = arrays[f"scores {layer}"].astype(np.float64)
            of_layer.append(TailCurve(scores, errors, len(text.ids) - text.begin))
        report(Progress(f"Calibrating {lm.name}", place + 1, len(texts.texts), texts.unit))
    targets = np.array(TARGETS)
    table = ThresholdTable(
        model=lm.name,
        fingerprint=lm.fingerprint,
        weighted=weighted,
        data=texts.name,
        data_sha256=texts.sha256,
        texts=len(texts.texts),
        tokens=sum(curve.tokens for curve in curves[0]),
        precision=lm.precision,
        targets=TARGETS,
        thresholds=tuple(tuple(thresholds(layer, targets).tolist()) for layer in curves),
    )
    parts.remove()
    return table


def _curves(lm: LoadedModel, text: Text, weighted: bool) -> dict[str, np.ndarray]:
    """The scores and errors of every layer's ``TailCurve`` on one text, float32: the table has six digits of them."""
    arrays: dict[str, np.ndarray] = {}

    def see(block: FeedForward, activations: torch.Tensor) -> None:
        activations = activations[text.begin :]
        curve = tail_curve(block, activations, score(strengths(activations, block.output_norms if weighted else None)))
        arrays[f"scores {block.layer}"] = curve.scores.astype(np.float32)
        arrays[f"errors {block.layer}"] = curve.errors.astype(np.float32)

    with torch.inference_mode(), observe(lm.blocks, see):
        lm.model(input_ids=inputs(text, lm), use_cache=False, logits_to_keep=1)
    return arrays
