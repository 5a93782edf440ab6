"""What is known of every neuron before a prompt is read: a method's evidence, averaged over calibration texts."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.feedforward import FeedForward
from ..model.hooks import observe
from ..support.files import kept_name
from ..support.lazy import inference_mode, torch
from ..support.progress import Progress, Report, silent
from .cett import squared_strengths
from .parts import Parts
from .sources import Source, Text, inputs
from .tables import KeptTable, json_rows

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

Evidence = Callable[[FeedForward, "torch.Tensor"], "torch.Tensor"]
"""What the tokens with these activations [T, d_ff] say of the neurons, summed over tokens: float32 [d_ff]."""

_LONGEST = 256  # tokens of a text that are read


def prior_of(
    lm: LoadedModel, kind: str, evidence: Evidence, source: Source, report: Report = silent
) -> tuple[torch.Tensor, ...]:
    """Mean ``evidence`` of a token, float32 [d_ff] a layer, over the counted tokens of ``source``.

    ``kind`` tells evidences apart. Kept, else shipped, else measured now and kept; what one precision gives serves all.
    """
    rows = kept_prior(lm, kind, source).get(lambda: measure_prior(lm, kind, evidence, source, report))
    return tuple(torch.from_numpy(row.astype(np.float32)).to(lm.device) for row in rows)


def strength_prior(
    lm: LoadedModel, source: Source, *, weighted: bool = False, report: Report = silent
) -> tuple[torch.Tensor, ...]:
    """The prior of squared relative activations, TDA's and GRIFFIN's; ``weighted``: times the squared output norm."""

    def evidence(block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return squared_strengths(activations, block.output_norms if weighted else None)

    return prior_of(lm, strength_kind(weighted), evidence, source, report)


def strength_kind(weighted: bool) -> str:
    """What that evidence is called."""
    return "strength-weighted" if weighted else "strength"


def kept_prior(lm: LoadedModel, kind: str, source: Source) -> KeptTable[list[np.ndarray]]:
    """Where a model's prior is kept."""
    widths = tuple(block.d_ff for block in lm.blocks)
    name = kept_name(lm.name, lm.fingerprint, source.name, kind)
    return KeptTable("priors", name, partial(_parse, widths), _text)


def _text(rows: list[np.ndarray]) -> str:
    """A JSON list with a layer a line: float16, base64; as multiples of 1/d_ff, which is what an even share is."""
    layers = [base64.b64encode(row.astype("<f2").tobytes()).decode() for row in (row * len(row) for row in rows)]
    return f"{json_rows(layers)}\n"


def _parse(widths: tuple[int, ...], layers: Any) -> list[np.ndarray]:
    rows = [np.frombuffer(base64.b64decode(layer), "<f2").astype(np.float64) for layer in layers]
    if tuple(map(len, rows)) != widths:
        raise ValueError("the prior is of other widths")
    return [row / len(row) for row in rows]


@inference_mode
def measure_prior(
    lm: LoadedModel, kind: str, evidence: Evidence, source: Source, report: Report = silent
) -> list[np.ndarray]:
    """``prior_of``, measured: float64 [d_ff] a layer, rounded as the file holds it."""
    texts = source.texts(lm, longest=_LONGEST, report=report)
    parts = Parts(f"{kept_prior(lm, kind, source).name}.{texts.sha256[:8]}")
    sums = [np.zeros(block.d_ff) for block in lm.blocks]
    for place, text in enumerate(texts.texts):
        report(Progress(f"Averaging over {texts.name}", place, len(texts.texts), texts.unit))
        of_text = parts.get(place, partial(_sums, lm, text, evidence))
        for layer, total in enumerate(sums):
            total += of_text[str(layer)]
    parts.remove()
    means = [total / texts.tokens for total in sums]
    return [(mean * len(mean)).astype("<f2").astype(np.float64) / len(mean) for mean in means]


def _sums(lm: LoadedModel, text: Text, evidence: Evidence) -> dict[str, np.ndarray]:
    """What one text's counted tokens say, float32 [d_ff] by layer."""
    sums: dict[str, np.ndarray] = {}

    def see(block: FeedForward, activations: torch.Tensor) -> None:
        sums[str(block.layer)] = evidence(block, activations[text.begin :]).float().cpu().numpy()

    with observe(lm.blocks, see):
        lm.model(input_ids=inputs(text, lm), use_cache=False, logits_to_keep=1)
    return sums
