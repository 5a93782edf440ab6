"""What settings are expected to come to, for the page: curves over each method's dial, with what they keep of layers.

All of it is measured on calibration texts, the model's own answers, never on held-out ones: quality and bytes as every
budget is (``budget.quality_curve``), what is kept on the prompts of those answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.sources import ANSWERS
from ..decode.choose import step_bytes
from ..methods import METHODS, TDA, Method
from ..methods.presets import Preset, presets_of
from ..methods.sequence import Evidence, SequencePolicy
from ..methods.tda import limits_of
from ..model.hooks import observe
from ..support.lazy import torch
from ..support.progress import Report, silent
from .budget import PLACES, kept_curve, with_dial_at
from .texts import batches

if TYPE_CHECKING:
    from ..model.feedforward import FeedForward
    from ..model.loading import LoadedModel

_PROMPTS = 16


def variants(kind: type[Method]) -> list[tuple[Method, list[Preset]]]:
    """The settings beside the dial that a curve is made for, each with its presets: the method's own and theirs."""
    found: dict[str, tuple[Method, list[Preset]]] = {}
    for method, preset in [(kind(), None), *((preset.of(kind), preset) for preset in presets_of(kind))]:
        at_end = with_dial_at(method, method.dial.sparsest)
        _, presets = found.setdefault(repr(at_end.settings()), (at_end, []))
        presets += [preset] if preset else []
    return list(found.values())


def measure(lm: LoadedModel, names: Iterable[str], report: Report = silent) -> dict[str, Any]:
    """What ``data/expected.json`` holds: plain types, shares 0..1, KL in nats per token."""
    neurons = step_bytes(lm)
    methods = {}
    for name in names:
        kind = METHODS[name]
        made = [_curve(lm, method, presets, report) for method, presets in variants(kind)]
        curves = [curve for curve in made if curve]
        dial = kind.dial
        methods[name] = {"setting": dial.setting, "dense": dial.dense, "sparsest": dial.sparsest, "curves": curves}
    return {
        "model": lm.name,
        "precision": lm.precision,
        "layers": len(lm.blocks),
        "dense_bytes": neurons.dense,
        "mlp_bytes": round(neurons.mlp),
        "methods": methods,
    }


def _curve(lm: LoadedModel, method: Method, presets: list[Preset], report: Report) -> dict[str, Any] | None:
    """Where a curve of the method's quality is known, that one; else, of a sequence-level method, the bytes that what
    it keeps comes to, and quality only at its ``presets``, as null elsewhere. None of others.

    ``share`` is of the MLP's weight bytes, ``step`` of all that a dense step reads.
    ``kept`` [values][layers] is of sequence-level methods; of TDA there are the ``limits`` that scores must reach, as
    many, and quantiles of the ``scores`` themselves, [layers][quantiles], which tell what any limit keeps.
    """
    dial = method.dial
    known = kept_curve(lm, method, ANSWERS).find()
    at_presets = {preset.settings[dial.setting]: preset.kl for preset in presets}
    grid = {round(dial.dense + place * (dial.sparsest - dial.dense), 6) for place in PLACES}
    values = list(known.values) if known else sorted({*grid, *at_presets}, key=lambda value: abs(value - dial.dense))
    policies = [with_dial_at(method, value).bind(lm, report, ANSWERS) for value in values]
    sequence_level = [policy for policy in policies if isinstance(policy, SequencePolicy)]
    if known is None and not sequence_level:
        return None
    told: dict[str, Any] = {
        "others": {name: value for name, value in method.settings().items() if name != dial.setting},
        "values": values,
        "kl": _short(known.kl) if known else [0 if value == dial.dense else at_presets.get(value) for value in values],
        "share": _short(known.mlp_share) if known else [],
        "step": _short(known.step_share) if known else [],
    }
    if not sequence_level:
        return told
    kept, scores = _on_prompts(lm, sequence_level, report)
    told["kept"] = [_short(layers) for layers in kept]
    if known is None:
        widths = np.array([block.d_ff for block in lm.blocks])
        weights = [step_bytes(lm, policy) for policy in sequence_level]
        plans = zip(weights, sequence_level, kept * widths, strict=True)
        read = [each.read(policy, counts) for each, policy, counts in plans]
        told["share"] = _short(traffic.mlp_share for traffic in read)
        told["step"] = _short(traffic.bytes / each.dense for each, traffic in zip(weights, read, strict=True))
    if isinstance(method, TDA):
        limits = [_short(limits_of(policy)) for policy in policies]
        told |= {"evidence": method.score_name, "limits": limits, "scores": [_short(layer) for layer in scores]}
    return told


def _on_prompts(lm: LoadedModel, policies: list[SequencePolicy], report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Means over prompts: the share that each policy keeps, float64 [policies, layers], and quantiles of the last
    one's scores, float64 [layers, quantiles].
    """
    kept: list[list[list[float]]] = [[[] for _ in lm.blocks] for _ in policies]
    scores: list[list[np.ndarray]] = [[] for _ in lm.blocks]

    def see(block: FeedForward, a: torch.Tensor) -> None:
        found = [Evidence.of(policy, block, a) for policy in policies]
        for evidence, layers in zip(found, kept, strict=True):
            layers[block.layer].append(float(evidence.active().float().mean()))
        scores[block.layer].append(found[-1].quantiles())

    for batch in batches(lm, ANSWERS, "Measuring what is kept", _PROMPTS, report=report):
        for text in batch.ids[:, : batch.prompt_tokens]:
            with torch.inference_mode(), observe(lm.blocks, see):
                lm.model(input_ids=text[None])
    return np.mean(kept, axis=2), np.mean(scores, axis=1)


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{float(value):.4g}") for value in values]
