"""A method's setting in units of quality: "at most this KL", or "at most this much more perplexity".

A curve of quality over the method's dial is measured once on the calibration passages, never on held-out ones, and
kept for the model; every budget is then a bisection on the curve, which is no work at all.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..calibrate import ASSETS
from ..errors import UserError
from ..files import cache_root, write_text
from ..methods.base import Method
from ..progress import Progress, Report, silent
from .documents import passages
from .evaluation import cut, grouped
from .ledger import digest
from .result import quality
from .scoring import Score, score
from .weight_bytes import step_bytes

if TYPE_CHECKING:
    from ..models import LoadedModel

SHIPPED = ASSETS / "budgets"
PROMPT_TOKENS, SCORE_TOKENS = 96, 64  # every passage is as long, whatever its language
# Where on the dial the curve is measured, 0 dense and 1 sparsest; closer where quality is still good.
PLACES = (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 1)


@dataclass(frozen=True)
class QualityCurve:
    """What a method costs at ``values`` of its dial, dense first: ``kl`` nats/token, ``perplexity`` over the dense one.

    The rest says what it was measured on.
    """

    method: str
    setting: str
    values: tuple[float, ...]
    kl: tuple[float, ...]
    perplexity: tuple[float, ...]
    precision: str
    documents: int
    scored_tokens: int

    def value_for_kl(self, most: float) -> float:
        """The dial's sparsest value whose KL is at most ``most``.

        Raises:
            UserError: ``most`` is negative or not a number.
        """
        if not most >= 0:
            raise UserError(f"A KL budget of {most} cannot be met; it must be a number of nats per token, 0 or more.")
        return _last_within(self.values, self.kl, most)

    def value_for_perplexity(self, more: float) -> float:
        """The dial's sparsest value whose perplexity is at most ``1 + more`` times the dense one.

        Raises:
            UserError: ``more`` is negative or not a number.
        """
        if not more >= 0:
            raise UserError(f"A perplexity budget of {more:+.1%} cannot be met; it must be 0 or more.")
        return _last_within(self.values, self.perplexity, 1 + more)


def _last_within(values: tuple[float, ...], costs: tuple[float, ...], most: float) -> float:
    """Where the cost, linear between measured values, first passes ``most``; noise that lowers it is not followed."""
    rising = np.maximum.accumulate(costs)
    if rising[-1] <= most:
        return values[-1]
    above = int(np.argmax(rising > most))
    if above == 0:
        return values[0]
    share = (most - rising[above - 1]) / (rising[above] - rising[above - 1])
    return float(values[above - 1] + share * (values[above] - values[above - 1]))


def within(
    lm: LoadedModel,
    method: Method,
    *,
    kl: float | None = None,
    perplexity: float | None = None,
    report: Report = silent,
) -> Method:
    """``method`` with its dial where the budget is used up on the calibration passages; give one of the two budgets.

    Raises:
        UserError: the budget is negative.
    """
    curve = quality_curve(lm, method, report)
    if (kl is None) == (perplexity is None):
        raise TypeError("give kl or perplexity, not both")
    value = curve.value_for_kl(kl) if kl is not None else curve.value_for_perplexity(perplexity or 0.0)
    return dataclasses.replace(method, **{curve.setting: value})


def quality_curve(lm: LoadedModel, method: Method, report: Report = silent) -> QualityCurve:
    """The model's curve for ``method`` with its other settings: kept, else shipped, else measured now and kept."""
    kept = kept_curve_path(lm, method)
    for path in (kept, SHIPPED / kept.name):
        if (curve := _load(path)) is not None:
            return curve
    curve = measure(lm, method, report)
    write_text(kept, json.dumps(asdict(curve), indent=1) + "\n")
    return curve


def kept_curve_path(lm: LoadedModel, method: Method) -> Path:
    """Where this model's curve lives in the user's cache."""
    others = {name: value for name, value in method.settings().items() if name != method.dial.setting}
    name = f"{lm.fingerprint[:12]}-{lm.precision}-{method.name}-{digest(others)[:8]}.json"
    return cache_root() / "budgets" / name


def measure(lm: LoadedModel, method: Method, report: Report = silent) -> QualityCurve:
    """Scores the method at every place of its dial on the calibration passages; one dense pass serves all places."""
    dial = method.dial
    values = tuple(round(dial.dense + place * (dial.sparsest - dial.dense), 6) for place in PLACES)
    choosers = [dataclasses.replace(method, **{dial.setting: value}).bind(lm, report) for value in values]
    texts = passages(held_out=False)
    scores: list[list[Score]] = [[] for _ in values]
    done = 0
    stage = f"Measuring what {method.name} costs"
    report(Progress(stage, 0, len(texts), "passages"))
    for group in grouped(iter(texts)):
        if ids := cut(lm, group, PROMPT_TOKENS + SCORE_TOKENS).ids:
            found = score(lm, choosers, torch.tensor(ids, device=lm.device), PROMPT_TOKENS)
            for collected, each in zip(scores, found, strict=True):
                collected.extend(each)
        done += len(group)
        report(Progress(stage, done, len(texts), "passages"))
    if not scores[0]:
        raise UserError(f"{lm.name} cuts the calibration passages into fewer than {PROMPT_TOKENS} tokens.")
    weights = step_bytes(lm)
    found = [quality(each, weights, chooser) for each, chooser in zip(scores, choosers, strict=True)]
    return QualityCurve(
        method=method.name,
        setting=dial.setting,
        values=values,
        kl=tuple(each.kl for each in found),
        perplexity=tuple(each.sparse_perplexity / each.dense_perplexity for each in found),
        precision=lm.precision,
        documents=found[0].documents,
        scored_tokens=found[0].scored_tokens,
    )


def _load(path: Path) -> QualityCurve | None:
    """The curve at ``path``; None where there is none or it is damaged, so that it is measured anew."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return QualityCurve(**{**fields, **lists})
    except (OSError, ValueError, TypeError):
        return None
