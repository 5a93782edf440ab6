"""What settings are expected to come to, for the page: curves over each method's dial, with what they keep of layers.

All of it is measured on calibration texts, the model's own answers, never on held-out ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.sources import ANSWERS
from ..decode.choose import step_bytes
from ..methods import METHODS, TDA, Method
from ..methods.presets import presets_of
from ..methods.sequence import Evidence, EvidencePolicy
from ..methods.tda import limits_of
from ..model.hooks import observe
from ..support.lazy import torch
from ..support.progress import Report, silent
from .budget import PLACES, with_dial_at
from .result import quality
from .scoring import Score, score_texts
from .texts import batches

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_TEXTS = 16
_QUANTILES = 65
TRAINED = ("dejavu", "moefication")  # what needs minutes of training first


def variants(kind: type[Method]) -> list[Method]:
    """The settings beside the dial that a curve is made for: the method's own, and those of its presets."""
    methods = [kind(), *(preset.of(kind) for preset in presets_of(kind))]
    found: dict[str, Method] = {}
    for method in methods:
        at_end = with_dial_at(method, method.dial.sparsest)
        found.setdefault(repr(at_end.settings()), at_end)
    return list(found.values())


def measure(lm: LoadedModel, names: Iterable[str], report: Report = silent) -> dict[str, Any]:
    """What ``data/expected.json`` holds: plain types, shares 0..1, KL in nats per token."""
    neurons = step_bytes(lm)
    methods = {}
    for name in names:
        kind = METHODS[name]
        dial = kind.dial
        curves = [_curve(lm, method, report) for method in variants(kind)]
        methods[name] = {"setting": dial.setting, "dense": dial.dense, "sparsest": dial.sparsest, "curves": curves}
    return {
        "model": lm.name,
        "precision": lm.precision,
        "layers": len(lm.blocks),
        "dense_bytes": neurons.dense,
        "mlp_bytes": round(neurons.mlp),
        "methods": methods,
    }


def _curve(lm: LoadedModel, method: Method, report: Report) -> dict[str, Any]:
    dial = method.dial
    places = [with_dial_at(method, round(dial.dense + share * (dial.sparsest - dial.dense), 6)) for share in PLACES]
    policies = [place.bind(lm, report, ANSWERS) for place in places]
    scores: list[list[Score]] = [[] for _ in places]
    for batch in batches(lm, ANSWERS, f"Measuring what {method.name} keeps", _TEXTS, report=report):
        new = score_texts(lm, policies, batch.ids, batch.prompt_tokens, with_fidelity=False)
        for collected, of_batch in zip(scores, new, strict=True):
            collected += of_batch
    totals = [
        quality(of_policy, step_bytes(lm, policy), policy) for of_policy, policy in zip(scores, policies, strict=True)
    ]
    widths = [block.d_ff for block in lm.blocks]
    kept = [np.mean([score.kept for score in of_place], axis=0) / widths for of_place in scores]
    curve = {
        "others": {name: value for name, value in method.settings().items() if name != dial.setting},
        "values": [getattr(place, dial.setting) for place in places],
        "kl": [_short(total.kl) for total in totals],
        "share": [_short(total.mlp_share) for total in totals],
        "kept": [[_short(share) for share in layers] for layers in kept],
        "texts": totals[0].documents,
    }
    if isinstance(method, TDA) and isinstance(policies[-1], EvidencePolicy):
        curve |= {
            "evidence": evidence_name(method),
            "limits": [[_short(limit) for limit in limits] for limits in map(limits_of, policies)],
            "scores": [[_short(score) for score in layer] for layer in _prompt_scores(lm, policies[-1], report)],
        }
    return curve


def evidence_name(method: TDA) -> str:
    """Which of TDA's settings its scores depend on."""
    return f"{'weighted' if method.weighted else 'plain'}-{method.prior:g}"


def _prompt_scores(lm: LoadedModel, policy: EvidencePolicy, report: Report) -> np.ndarray:
    """Quantiles of every layer's scores after a prompt, their mean over prompts: float64 [layers, quantiles]."""
    seen: list[list[np.ndarray]] = [[] for _ in lm.blocks]
    for batch in batches(lm, ANSWERS, "Measuring scores", _TEXTS, report=report):
        for text in batch.ids[:, : batch.prompt_tokens]:
            with (
                torch.inference_mode(),
                observe(
                    lm.blocks,
                    lambda block, a: seen[block.layer].append(quantiles(Evidence.of(policy, block, a))),
                ),
            ):
                lm.model(input_ids=text[None])
    return np.mean(seen, axis=1)


def quantiles(evidence: Evidence) -> np.ndarray:
    """Evenly spaced quantiles of a layer's scores, from the least to the largest: float64 [quantiles]."""
    scores = (evidence.sums / evidence.tokens).sqrt().float().cpu().numpy()
    return np.quantile(scores, np.linspace(0, 1, _QUANTILES))


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")
