"""A byte budget spread over the layers by what each layer costs, instead of one CETT for all of them.

How much the text suffers is measured a layer at a time: the KL with that layer alone sparse, at one CETT, on the
calibration passages. Our reading of how that grows: with the square of the layer's relative output error, as KL does
for small changes of the logits; and that the layers' costs add up. The allocation is then the cheapest choice of one
CETT a layer that keeps the neurons paid for: for a price per neuron every layer takes the CETT that is cheapest at
that price, and the price is found by bisection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..calibration.cett import score as neuron_score
from ..calibration.cett import strengths
from ..calibration.documents import calibration_passages
from ..calibration.thresholds import TARGETS, threshold_table
from ..methods.plan import ActiveSets
from ..methods.policy import SequencePolicy
from ..methods.tda import TDA
from ..model.feedforward import FeedForward
from ..support.errors import UserError
from ..support.progress import Progress, Report, silent
from .evaluation import cut, in_batches
from .scoring import BatchPlan, read_texts, score_plan

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

PROBE_CETT = 0.25
PROMPT_TOKENS, SCORE_TOKENS = 96, 64


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """``kl`` float64 [layers]: nats/token with that layer alone at ``PROBE_CETT``.

    ``kept`` float64 [layers, targets]: share of the layer's neurons that each CETT target of the threshold table keeps,
    the mean over the passages.
    """

    kl: np.ndarray
    kept: np.ndarray


class _Probe(SequencePolicy):
    """Selects as TDA does at the probe's CETT, and counts what every target would keep."""

    def __init__(self, lm: LoadedModel, thresholds: np.ndarray, weighted: bool) -> None:
        self.thresholds = torch.tensor(thresholds, device=lm.device)  # float64 [layers, targets]
        self.at = TARGETS.index(PROBE_CETT)
        self.weighted = weighted
        self.kept: list[list[np.ndarray]] = [[] for _ in lm.blocks]

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        scores = neuron_score(strengths(activations, block.output_norms if self.weighted else None))
        reaching = scores[:, None] >= self.thresholds[block.layer]
        self.kept[block.layer].append(reaching.double().mean(dim=0).cpu().numpy())
        return reaching[:, self.at]


@torch.inference_mode()
def sensitivity(lm: LoadedModel, *, weighted: bool = False, most: int = 24, report: Report = silent) -> Sensitivity:
    """Measures at most ``most`` calibration passages: a dense pass each, and a pass of its scored tokens a layer."""
    table = threshold_table(lm, weighted=weighted, report=report)
    probe = _Probe(lm, np.array(table.thresholds), weighted)
    total = np.zeros(len(lm.blocks))
    tokens = done = 0
    texts = calibration_passages().documents[:most]
    for group in in_batches(iter(texts)):
        report(Progress("Measuring the layers", done, len(texts), "passages"))
        ids = torch.tensor(cut(lm, group, PROMPT_TOKENS + SCORE_TOKENS).ids, device=lm.device)
        done += len(group)
        if not len(ids):
            continue
        reading = read_texts(lm, [probe], ids, PROMPT_TOKENS, with_fidelity=False)
        (batch,) = reading.plans
        targets = ids[:, PROMPT_TOKENS:]
        tokens += targets.numel()
        for layer in range(len(lm.blocks)):
            scores = score_plan(lm, reading.logits, reading, _only(batch, layer), targets)
            total[layer] += sum(score.kl for score in scores)
    report(Progress("Measuring the layers", len(texts), len(texts), "passages"))
    if not tokens:
        raise UserError(f"{lm.name} cuts the calibration passages into fewer than {PROMPT_TOKENS} tokens.")
    return Sensitivity(total / tokens, np.array([np.mean(layer, axis=0) for layer in probe.kept]))


def _only(batch: BatchPlan, layer: int) -> BatchPlan:
    """``batch`` in one layer, every neuron in the others."""
    masks = cast(ActiveSets, batch.plan).masks
    alone = tuple(mask if index == layer else torch.ones_like(mask) for index, mask in enumerate(masks))
    return replace(batch, plan=ActiveSets(alone))


def uniform(measured: Sensitivity, share: float) -> float:
    """The one CETT for all layers that keeps ``share`` of the neurons on the passages it was ``measured`` on."""
    means = measured.kept.mean(axis=0)
    return float(np.interp(-share, -means, TARGETS))


def allocate(measured: Sensitivity, share: float) -> np.ndarray:
    """One CETT a layer, float64 [layers], that keep ``share`` of all neurons at the least expected KL.

    Raises:
        UserError: ``share`` is not between what the sparsest targets keep and 1.
    """
    least = float(measured.kept[:, -1].mean())
    if not least <= share <= 1:
        raise UserError(f"A share of {share} of the neurons cannot be kept; it must be from {least:.2f} to 1.")
    targets = np.array(TARGETS)
    cost = measured.kl[:, None] * (targets / PROBE_CETT) ** 2

    def cheapest(log_price: float) -> np.ndarray:
        return np.argmin(cost + np.exp(log_price) * measured.kept, axis=1)

    low, high = -30.0, 30.0  # of the price: at the low end all is kept, at the high one least
    for _ in range(60):
        middle = (low + high) / 2
        if np.take_along_axis(measured.kept, cheapest(middle)[:, None], axis=1).mean() > share:
            low = middle
        else:
            high = middle
    return targets[cheapest(high)]


def as_method(lm: LoadedModel, cett: np.ndarray, *, weighted: bool = False) -> TDA:
    """TDA with the thresholds of ``cett`` float64 [layers]: one CETT, and a factor on each layer's threshold."""
    table = threshold_table(lm, weighted=weighted)
    thresholds = np.array([table.at(value)[layer] for layer, value in enumerate(cett)])
    return TDA(cett=PROBE_CETT, scale=tuple((thresholds / table.at(PROBE_CETT)).tolist()), weighted=weighted)
