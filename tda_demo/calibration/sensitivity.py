"""What each layer's sparsity costs, and how a budget of neurons is spread over the layers by it.

How much a text suffers is measured a layer at a time: the KL with that layer alone sparse, at one CETT, on calibration
texts. Our reading of how that grows: with the square of the layer's relative output error, as KL does for small changes
of the logits; and that the layers' costs add up. The allocation is then the cheapest choice of one CETT a layer that
keeps the neurons paid for: for a price per neuron every layer takes the CETT that is cheapest at that price, and the
price is found by bisection.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.feedforward import FeedForward
from ..model.hooks import intercept, observe
from ..stats.metrics import compare_forced
from ..support.errors import UserError
from ..support.files import kept_name
from ..support.kept import remove_kept
from ..support.lazy import inference_mode, torch
from ..support.progress import Progress, Report, silent
from .cett import score, strengths
from .sources import Source, Text, inputs
from .tables import KeptTable, significant
from .thresholds import TARGETS, threshold_table

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

PROBE_CETT = 0.25
TEXTS = 24  # read at most
PROMPT_TOKENS, SCORE_TOKENS = 96, 64  # of a text without a question, and at most of any


@dataclass(frozen=True)
class Sensitivity:
    """``kl`` by layer: nats/token with that layer alone at ``PROBE_CETT``, its neurons chosen from the prompt.

    ``kept`` by layer and CETT target of the threshold table: the share of the layer's neurons that it keeps, mean over
    the ``texts``; ``tokens`` were scored.
    """

    kl: tuple[float, ...]
    kept: tuple[tuple[float, ...], ...]
    texts: int
    tokens: int


def sensitivity(
    lm: LoadedModel, source: Source, *, weighted: bool = False, most: int = TEXTS, report: Report = silent
) -> Sensitivity:
    """The model's on ``source``: kept, else shipped, else measured now on at most ``most`` texts and kept.

    Measuring takes a dense pass a text, and a pass of its scored tokens a layer.
    """
    kept = kept_sensitivity(lm, weighted, source, most)
    return kept.get(lambda: measure_sensitivity(lm, source, kept, weighted=weighted, most=most, report=report))


def kept_sensitivity(lm: LoadedModel, weighted: bool, source: Source, most: int = TEXTS) -> KeptTable[Sensitivity]:
    """Where it is kept; one precision's serves all."""
    kind = [source.name, *(["weighted"] if weighted else []), *([str(most)] if most != TEXTS else [])]
    name = kept_name(lm.name, lm.fingerprint, *kind)
    return KeptTable("sensitivity", name, partial(_parse, len(lm.blocks)), _text)


def _text(measured: Sensitivity) -> str:
    fields = asdict(measured)
    fields |= {"kl": significant(measured.kl, 5), "kept": [significant(row, 4) for row in measured.kept]}
    return json.dumps(fields) + "\n"


def _parse(layers: int, fields: Any) -> Sensitivity:
    kept = tuple(tuple(row) for row in fields["kept"])
    if np.array(kept, dtype=np.float64).shape != (layers, len(TARGETS)) or len(fields["kl"]) != layers:
        raise ValueError("a layer has not one share a target")
    return Sensitivity(tuple(fields["kl"]), kept, fields["texts"], fields["tokens"])


@inference_mode
def measure_sensitivity(
    lm: LoadedModel,
    source: Source,
    kept: KeptTable[Sensitivity],
    *,
    weighted: bool = False,
    most: int = TEXTS,
    report: Report = silent,
) -> Sensitivity:
    """Measured text by text; what ``kept.unfinished`` holds of a run that was cut off is taken over.

    Raises:
        UserError: no text is long enough.
    """
    limits = np.array(threshold_table(lm, weighted=weighted, source=source, report=report).thresholds)
    read = source.texts(lm, longest=lm.context_length, report=report)
    texts = [cut for text in read.texts if (cut := _cut(text)) is not None][:most]
    if not texts:
        raise UserError(f"{lm.name} cuts the calibration texts into fewer than {PROMPT_TOKENS} tokens.")
    part = kept.unfinished(source.version())
    so_far = part.find() or Sensitivity((0.0,) * len(lm.blocks), tuple((0.0,) * len(TARGETS) for _ in lm.blocks), 0, 0)
    for text in texts[so_far.texts :]:
        report(Progress("Measuring the layers", so_far.texts, len(texts), read.unit))
        so_far = _with_text(so_far, lm, text, torch.tensor(limits, device=lm.device), weighted)
        part.save(so_far)
    remove_kept(part.path)
    return so_far


def _cut(text: Text) -> Text | None:
    """With what is scored from ``begin`` on; None where too little is."""
    begin = text.begin or PROMPT_TOKENS
    ids = text.ids[: begin + SCORE_TOKENS]
    return Text(ids, begin) if len(ids) > begin + 1 else None


def _with_text(so_far: Sensitivity, lm: LoadedModel, text: Text, limits: torch.Tensor, weighted: bool) -> Sensitivity:
    """The means with one text more."""
    from transformers import DynamicCache

    ids, begin = inputs(text, lm), text.begin
    masks: list[torch.Tensor] = []
    kept: list[np.ndarray] = []

    def see(block: FeedForward, activations: torch.Tensor) -> None:
        norms = block.output_norms if weighted else None
        reaching = score(strengths(activations[:begin], norms))[:, None] >= limits[block.layer]
        kept.append(reaching.double().mean(dim=0).cpu().numpy())
        masks.append(reaching[:, TARGETS.index(PROBE_CETT)])

    cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
    with observe(lm.blocks, see):
        dense = lm.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits[0, begin - 1 :]
    fed, targets = ids[:, begin - 1 : -1], ids[0, begin:]
    cache.crop(-fed.shape[1])
    costs = []
    for block, mask in zip(lm.blocks, masks, strict=True):
        undo = intercept(block, lambda _x, activations, mask=mask: activations * mask.to(activations.dtype))
        logits = lm.model(input_ids=fed, past_key_values=cache, use_cache=True).logits[0]
        undo()
        cache.crop(-fed.shape[1])
        costs.append(float(compare_forced(dense, logits, targets).kl.double().sum()))
    tokens = so_far.tokens + len(targets)
    by_token = [(old * so_far.tokens + new) / tokens for old, new in zip(so_far.kl, costs, strict=True)]
    by_text = (np.array(so_far.kept) * so_far.texts + np.array(kept)) / (so_far.texts + 1)
    return Sensitivity(tuple(by_token), tuple(map(tuple, by_text.tolist())), so_far.texts + 1, tokens)


def uniform(measured: Sensitivity, share: float) -> float:
    """The one CETT for all layers that keeps ``share`` of the neurons on the texts it was ``measured`` on."""
    means = np.array(measured.kept).mean(axis=0)
    return float(np.interp(-share, -means, TARGETS))


def share_at(measured: Sensitivity, cett: float) -> float:
    """The share of the neurons that one ``cett`` for all layers keeps."""
    return float(np.interp(cett, TARGETS, np.array(measured.kept).mean(axis=0)))


def allocate(measured: Sensitivity, share: float) -> np.ndarray:
    """One CETT a layer, float64 [layers], that keep ``share`` of all neurons at the least expected KL.

    Raises:
        UserError: ``share`` is not between what the sparsest targets keep and 1.
    """
    kept = np.array(measured.kept)
    least = float(kept[:, -1].mean())
    if not least <= share <= 1:
        raise UserError(f"A share of {share} of the neurons cannot be kept; it must be from {least:.2f} to 1.")
    targets = np.array(TARGETS)
    cost = np.array(measured.kl)[:, None] * (targets / PROBE_CETT) ** 2

    def cheapest(log_price: float) -> np.ndarray:
        return np.argmin(cost + np.exp(log_price) * kept, axis=1)

    low, high = -30.0, 30.0  # of the price: at the low end all is kept, at the high one least
    for _ in range(60):
        middle = (low + high) / 2
        if np.take_along_axis(kept, cheapest(middle)[:, None], axis=1).mean() > share:
            low = middle
        else:
            high = middle
    return targets[cheapest(high)]
