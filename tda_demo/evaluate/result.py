"""What an evaluation found, and the JSON it is told in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ..decode.weight_bytes import StepBytes
from ..methods.policy import Policy
from ..stats import metrics
from ..stats.estimates import LEAST_CLUSTERS, ratios
from .scoring import Score


@dataclass(frozen=True)
class QualityTotals:
    """The scores of all texts taken together; per-layer numbers are means over texts.

    ``kl`` in nats per token, ``agreement``, ``sparsity`` and ``mlp_share`` (of the MLP's bytes, what a method adds
    included) 0..1; ``step_bytes`` and ``byte_bound`` of the mean active set; ``cett`` and ``recall`` of every layer.
    ``kl_low`` and ``kl_high`` are the 95 % interval of ``kl`` over texts; None of fewer texts than an interval takes.
    """

    documents: int
    scored_tokens: int
    dense_perplexity: float
    sparse_perplexity: float
    kl: float
    kl_low: float | None
    kl_high: float | None
    agreement: float
    kept: tuple[float, ...]
    sparsity: tuple[float, ...]
    mlp_share: float
    step_bytes: float
    byte_bound: float
    cett: tuple[float, ...]
    recall: tuple[float, ...]


def quality(scores: Sequence[Score], weights: StepBytes, policy: Policy) -> QualityTotals:
    """Adds up the ``scores``, at least one, that ``policy`` got on a model whose steps read ``weights``."""
    tokens = sum(score.tokens for score in scores)
    kept = _by_layer([score.kept for score in scores])
    unread = _by_layer([score.unread for score in scores])
    copied = [_by_layer(layer) for layer in zip(*(score.copied for score in scores), strict=True)]
    read = weights.read(policy, kept, unread, copied)
    kl_low, kl_high = _kl_interval(scores)
    return QualityTotals(
        documents=len(scores),
        scored_tokens=tokens,
        dense_perplexity=metrics.perplexity(sum(score.dense_loss for score in scores), tokens),
        sparse_perplexity=metrics.perplexity(sum(score.sparse_loss for score in scores), tokens),
        kl=sum(score.kl for score in scores) / tokens,
        kl_low=kl_low,
        kl_high=kl_high,
        agreement=sum(score.agreeing for score in scores) / tokens,
        kept=kept,
        sparsity=tuple(1 - count / width for count, width in zip(kept, weights.widths, strict=True)),
        mlp_share=read.mlp_share,
        step_bytes=read.bytes,
        byte_bound=metrics.byte_bound(weights.dense, read.bytes),
        cett=_by_layer([score.cett for score in scores]),
        recall=_by_layer([score.recall for score in scores]),
    )


def _kl_interval(scores: Sequence[Score]) -> tuple[float, float] | tuple[None, None]:
    """Nats per token, whole texts the clusters; no KL is below 0."""
    if len(scores) < LEAST_CLUSTERS:
        return None, None
    (interval,) = ratios(np.array([[score.kl] for score in scores]), np.array([[score.tokens] for score in scores]))
    return max(interval.low, 0.0), interval.high


def _by_layer(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(fmean(layer) for layer in zip(*rows, strict=True))


@dataclass(frozen=True)
class Generation:
    """Greedy texts against references: means over ``documents`` of ROUGE-L F1 and of exact matches, 0..1."""

    documents: int
    max_new_tokens: int
    rouge_l: dict[str, float]
    exact_match: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation measured. Nothing in it changes from run to run on one machine: no times.

    ``quality`` and ``byte_bound`` are None where the texts have references but are too short to score;
    ``short`` counts the texts that were too short; ``tokens_sha256`` is of the token ids scored.
    """

    model: str
    device: str
    precision: str
    method: str
    settings: dict[str, Any]
    text: str
    tokens_sha256: str
    prompt_tokens: int
    score_tokens: int
    short: int
    quality: QualityTotals | None
    byte_bound: float | None
    generation: Generation | None
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain types; ``sparsity`` is the mean over layers, ``layers`` has it by layer."""
        fields = {name: value for name, value in asdict(self).items() if name != "quality"}
        totals = self.quality
        scored = {
            "documents": totals.documents if totals else 0,
            "scored_tokens": totals.scored_tokens if totals else 0,
            "perplexity": {"dense": totals.dense_perplexity, "sparse": totals.sparse_perplexity} if totals else None,
            "kl": totals.kl if totals else None,
            "kl_low": totals.kl_low if totals else None,
            "kl_high": totals.kl_high if totals else None,
            "agreement": totals.agreement if totals else None,
            "sparsity": fmean(totals.sparsity) if totals else None,
            "mlp_share": totals.mlp_share if totals else None,
            "layers": {"sparsity": totals.sparsity, "cett": totals.cett, "recall": totals.recall} if totals else None,
        }
        return {**fields, **scored}


def _interval(totals: QualityTotals) -> str:
    return "" if totals.kl_low is None else f" (95 % over texts: {totals.kl_low:.4f} to {totals.kl_high:.4f})"


def summary(evaluation: Evaluation) -> str:
    """The result as a few lines of text, every number with its unit."""
    settings = " ".join(f"{name}={value}" for name, value in evaluation.settings.items() if value not in ((), False))
    lines = [f"{evaluation.model}, {evaluation.precision} on {evaluation.device}; {evaluation.method} {settings}"]
    if (totals := evaluation.quality) and evaluation.byte_bound:
        more = totals.sparse_perplexity / totals.dense_perplexity - 1
        lines += [
            f"{totals.scored_tokens} tokens of {totals.documents} documents of {evaluation.text}, "
            f"{evaluation.score_tokens} each after a prompt of {evaluation.prompt_tokens}",
            f"perplexity {totals.dense_perplexity:.2f} dense, {totals.sparse_perplexity:.2f} sparse ({more:+.1%})",
            f"KL {totals.kl:.4f} nats/token{_interval(totals)}, agreement {totals.agreement:.1%}",
            f"sparsity {fmean(totals.sparsity):.1%}, mask recall {fmean(totals.recall):.1%}, "
            f"realised CETT {fmean(totals.cett):.3f} (means over layers)",
            f"{totals.mlp_share:.1%} of the MLP bytes read; byte bound {evaluation.byte_bound:.3f}x",
        ]
    if evaluation.short:
        lines.append(f"{evaluation.short} documents too short to score were left out")
    if generation := evaluation.generation:
        for name, values in (("ROUGE-L", generation.rouge_l), ("exact match", generation.exact_match)):
            arms = ", ".join(f"{value:.3f} {arm}" for arm, value in values.items())
            lines.append(f"{name} over {generation.documents} references: {arms}")
    return "\n".join(lines)
