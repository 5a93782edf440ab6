"""A method's setting in other units: "at most this KL", "this share of the bytes".

A curve of quality and bytes over the method's dial is measured once on calibration texts, never on held-out ones, and
kept for the model; every budget is then read off the curve, linear between its points, which is no work. A race's is of
the model's own answers, an evaluation's of passages.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.sources import ANSWERS, Source
from ..calibration.tables import KeptTable
from ..decode.choose import step_bytes
from ..methods.base import Method
from ..support.errors import UserError
from ..support.progress import Report, silent
from .bookkeeping import digest
from .result import quality
from .scoring import Score, score_texts
from .texts import batches

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_FORMAT = 4  # of the count of bytes; part of a curve's name
_MOST_TEXTS = 16
# Where on the dial the curve is measured, 0 dense and 1 sparsest; closest where some method turns from good to bad, and
# at the dense end, where KL rises faster than in proportion and a straight line would promise too much of it.
PLACES = (0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)


@dataclass(frozen=True)
class QualityCurve:
    """What a method costs at ``values`` of its dial, dense first: ``kl`` nats/token, ``perplexity`` over the dense one.

    ``mlp_share`` is the share of the dense model's MLP weight bytes that a step reads, ``step_share`` that of all its
    weight bytes. The rest says what it was measured on.
    """

    method: str
    setting: str
    values: tuple[float, ...]
    kl: tuple[float, ...]
    perplexity: tuple[float, ...]
    mlp_share: tuple[float, ...]
    step_share: tuple[float, ...]
    precision: str
    source: str
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

    def value_for_mlp_share(self, most: float) -> float:
        """The dial's densest value that reads at most the share ``most`` of the MLP weight bytes.

        Raises:
            UserError: ``most`` is not a share, or the method reads more at its sparsest.
        """
        if not 0 <= most <= 1:
            raise UserError(
                f"A budget of {most:.1%} of the MLP weight bytes cannot be met; it must be from 0 to 100 %."
            )
        falling = np.minimum.accumulate(self.mlp_share)
        if falling[-1] >= 1 > most:
            raise UserError(
                f"{self.method} saves no weight bytes on this model at this precision: leave out the budget."
            )
        if falling[-1] > most:
            raise UserError(
                f"{self.method} reads {math.ceil(100 * falling[-1])} % of the MLP weight bytes at its sparsest: "
                "allow that much or more."
            )
        return _crossing(self.values, falling, most, int(np.argmax(falling <= most)))

    def kl_at(self, value: float) -> float:
        """KL at a ``value`` of the dial, linear between measured ones."""
        return self._at(value, self.kl)

    def mlp_share_at(self, value: float) -> float:
        """Share of the MLP weight bytes at a ``value`` of the dial, linear between measured ones."""
        return self._at(value, self.mlp_share)

    def _at(self, value: float, costs: tuple[float, ...]) -> float:
        sign = 1 if self.values[-1] >= self.values[0] else -1  # numpy interpolates over what rises
        return float(np.interp(sign * value, sign * np.array(self.values), costs))


def _last_within(values: tuple[float, ...], costs: tuple[float, ...], most: float) -> float:
    """Where the cost, linear between measured values, first passes ``most``; noise that lowers it is not followed."""
    rising = np.maximum.accumulate(costs)
    if rising[-1] <= most:
        return values[-1]
    return _crossing(values, rising, most, int(np.argmax(rising > most)))


def _crossing(values: tuple[float, ...], costs: np.ndarray, level: float, beyond: int) -> float:
    """Where ``costs``, linear between measured values, pass ``level``; ``beyond``: the first place on its far side."""
    if beyond == 0:
        return values[0]
    share = (level - costs[beyond - 1]) / (costs[beyond] - costs[beyond - 1])
    return float(values[beyond - 1] + share * (values[beyond] - values[beyond - 1]))


def within(
    lm: LoadedModel,
    method: Method,
    *,
    kl: float | None = None,
    mlp_share: float | None = None,
    source: Source = ANSWERS,
    report: Report = silent,
) -> Method:
    """``method`` with its dial where the budget is used up on ``source``; give one of ``kl`` and ``mlp_share``.

    Raises:
        UserError: the budget cannot be met; see ``QualityCurve``.
    """
    if (kl is None) == (mlp_share is None):
        raise TypeError("give one of kl and mlp_share")
    curve = quality_curve(lm, method, source, report)
    if kl is not None:
        return with_dial_at(method, curve.value_for_kl(kl))
    assert mlp_share is not None
    return with_dial_at(method, curve.value_for_mlp_share(mlp_share))


def with_dial_at(method: Method, value: float) -> Method:
    """``method`` with its dial at ``value``; a dial of whole numbers is turned to the next one towards dense."""
    dial = method.dial
    if isinstance(getattr(type(method)(), dial.setting), int):  # its own default: 0 may stand for 0.0
        value = math.floor(value) if dial.sparsest > dial.dense else math.ceil(value)
    return dataclasses.replace(method, **{dial.setting: value})


def quality_curve(lm: LoadedModel, method: Method, source: Source = ANSWERS, report: Report = silent) -> QualityCurve:
    """The model's curve for ``method`` with its other settings: kept, else shipped, else measured now and kept."""
    return kept_curve(lm, method, source).get(lambda: measure_curve(lm, method, source, report))


def kept_curve(lm: LoadedModel, method: Method, source: Source = ANSWERS) -> KeptTable[QualityCurve]:
    """Where this model's curve is kept; of other texts or places it is another curve.

    So it is on another device, whose engine may skip nothing where this one's does.
    """
    others = {name: value for name, value in method.settings().items() if name != method.dial.setting}
    made_of = [
        _FORMAT,
        lm.device.type,
        lm.is_spread,
        others,
        PLACES,
        _MOST_TEXTS,
        source.version(),
    ]
    name = f"{lm.fingerprint[:12]}-{lm.precision}-{method.name}-{source.name}-{digest(made_of)[:8]}"
    return KeptTable("budgets", name, _parse, _text)


def _text(curve: QualityCurve) -> str:
    return json.dumps(asdict(curve), indent=1) + "\n"


def _parse(fields: Any) -> QualityCurve:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    if {len(value) for value in lists.values()} != {len(PLACES)}:
        raise ValueError("the curve has not one value a place")
    return QualityCurve(**{**fields, **lists})


def measure_curve(lm: LoadedModel, method: Method, source: Source = ANSWERS, report: Report = silent) -> QualityCurve:
    """Scores the method at every place of its dial on ``source``; one dense pass serves all places."""
    dial = method.dial
    places = [with_dial_at(method, round(dial.dense + share * (dial.sparsest - dial.dense), 6)) for share in PLACES]
    values = tuple(getattr(place, dial.setting) for place in places)
    policies = [place.bind(lm, report, source) for place in places]
    scores: list[list[Score]] = [[] for _ in values]
    for batch in batches(lm, source, f"Measuring what {method.name} costs", _MOST_TEXTS, report=report):
        new = score_texts(lm, policies, batch.ids, batch.prompt_tokens, with_fidelity=False)
        for collected, of_batch in zip(scores, new, strict=True):
            collected += of_batch
    totals = [
        quality(of_policy, step_bytes(lm, policy), policy) for of_policy, policy in zip(scores, policies, strict=True)
    ]
    return QualityCurve(
        method=method.name,
        setting=dial.setting,
        values=values,
        kl=tuple(total.kl for total in totals),
        perplexity=tuple(total.sparse_perplexity / total.dense_perplexity for total in totals),
        mlp_share=tuple(total.mlp_share for total in totals),
        step_share=tuple(1 / total.byte_bound for total in totals),
        precision=lm.precision,
        source=source.name,
        documents=totals[0].documents,
        scored_tokens=totals[0].scored_tokens,
    )
