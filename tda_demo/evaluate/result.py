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
    """Sums of scores as the numbers of the house; per-layer numbers are means over texts.

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
    unread, copied = (_by_layer([getattr(score, name) for score in scores]) for name in ("unread", "copied"))
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
    (found,) = ratios(np.array([[score.kl] for score in scores]), np.array([[score.tokens] for score in scores]))
    return max(found.low, 0.0), found.high


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
        found = self.quality
        scored = {
            "documents": found.documents if found else 0,
            "scored_tokens": found.scored_tokens if found else 0,
            "perplexity": {"dense": found.dense_perplexity, "sparse": found.sparse_perplexity} if found else None,
            "kl": found.kl if found else None,
            "kl_low": found.kl_low if found else None,
            "kl_high": found.kl_high if found else None,
            "agreement": found.agreement if found else None,
            "sparsity": fmean(found.sparsity) if found else None,
            "mlp_share": found.mlp_share if found else None,
            "layers": {"sparsity": found.sparsity, "cett": found.cett, "recall": found.recall} if found else None,
        }
        return {**fields, **scored}


def _interval(found: QualityTotals) -> str:
    return "" if found.kl_low is None else f" (95 % over texts: {found.kl_low:.4f} to {found.kl_high:.4f})"


def summary(evaluation: Evaluation) -> str:
    """The result as a few lines of text, every number with its unit."""
    settings = " ".join(f"{name}={value}" for name, value in evaluation.settings.items() if value not in ((), False))
    lines = [f"{evaluation.model}, {evaluation.precision} on {evaluation.device}; {evaluation.method} {settings}"]
    if (found := evaluation.quality) and evaluation.byte_bound:
        more = found.sparse_perplexity / found.dense_perplexity - 1
        lines += [
            f"{found.scored_tokens} tokens of {found.documents} documents of {evaluation.text}, "
            f"{evaluation.score_tokens} each after a prompt of {evaluation.prompt_tokens}",
            f"perplexity {found.dense_perplexity:.2f} dense, {found.sparse_perplexity:.2f} sparse ({more:+.1%})",
            f"KL {found.kl:.4f} nats/token{_interval(found)}, agreement {found.agreement:.1%}",
            f"sparsity {fmean(found.sparsity):.1%}, mask recall {fmean(found.recall):.1%}, "
            f"realised CETT {fmean(found.cett):.3f} (means over layers)",
            f"{found.mlp_share:.1%} of the MLP bytes read; byte bound {evaluation.byte_bound:.3f}x",
        ]
    if evaluation.short:
        lines.append(f"{evaluation.short} documents too short to score were left out")
    if told := evaluation.generation:
        for name, values in (("ROUGE-L", told.rouge_l), ("exact match", told.exact_match)):
            arms = ", ".join(f"{value:.3f} {arm}" for arm, value in values.items())
            lines.append(f"{name} over {told.documents} references: {arms}")
    return "\n".join(lines)
