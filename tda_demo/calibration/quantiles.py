"""Thresholds of token-level methods: quantiles of a score over calibration texts, layer by layer.

With the threshold for a share of the neurons, that share of them fires on average; a token may have more or fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.feedforward import FeedForward
from ..model.hooks import intercept
from ..support.files import kept_name
from ..support.lazy import torch
from ..support.progress import Progress, Report, silent
from .sources import Source, inputs
from .tables import KeptTable, json_rows, significant

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

Score = Callable[[FeedForward, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]

SHARES = np.linspace(0, 1, 101)  # of values that stay below
_TOKENS = 1024  # in all, spread over the texts
_LONGEST = 256  # tokens of a text that are read


def limits(
    lm: LoadedModel, name: str, score: Score, keep: float, source: Source, report: Report = silent
) -> np.ndarray:
    """Float64 [layers]: the ``score(block, x, a)`` [T, d_ff] that the share ``keep`` of a layer's neurons exceeds.

    ``name`` tells scores apart. Quantiles are kept for the model, shipped for the embedded one, or measured now. A
    ``keep`` of 1 gives minus infinity, which every neuron exceeds, and 0 infinity.
    """
    if keep in (0, 1):
        return np.full(len(lm.blocks), -np.inf if keep else np.inf)
    table = kept_table(lm, name, len(SHARES), source, lambda: measure_quantiles(lm, score, source, report))
    return np.array([np.interp(1 - keep, SHARES, layer) for layer in table])


def kept_table(lm: LoadedModel, name: str, columns: int, source: Source, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Float64 [layers, columns], of the model and ``source``: kept, else shipped, else made now and kept."""
    shape = len(lm.blocks), columns
    name = kept_name(lm.name, lm.fingerprint, lm.precision, source.name, name)
    return KeptTable("thresholds", name, partial(_parse, shape), _text).get(make)


def _parse(shape: tuple[int, int], layers: Any) -> np.ndarray:
    table = np.array(layers, dtype=np.float64)
    if table.shape != shape:
        raise ValueError(f"the table is {table.shape}, not {shape}")
    return table


def _text(table: np.ndarray) -> str:
    return f"{json_rows(significant(layer, 5) for layer in table)}\n"


def measure_quantiles(lm: LoadedModel, score: Score, source: Source, report: Report = silent) -> np.ndarray:
    """Quantiles of ``score`` at ``SHARES``, float64 [layers, shares], over tokens of ``source``."""
    return np.array([quantiles(score(*seen)) for seen in observed_tokens(lm, source, report)])


def quantiles(values: torch.Tensor) -> np.ndarray:
    """Float64 [shares]: the values that ``SHARES`` of all ``values`` lie at or below."""
    in_order = values.flatten().float().sort().values.double().cpu().numpy()
    return in_order[np.rint(SHARES * (len(in_order) - 1)).astype(int)]


def observed_tokens(
    lm: LoadedModel, source: Source, report: Report = silent
) -> Iterator[tuple[FeedForward, torch.Tensor, torch.Tensor]]:
    """Every block with its input [T, d] and activations [T, d_ff] at T of the tokens of ``source``."""
    read = source.texts(lm, longest=_LONGEST, report=report)
    texts, begin = read.texts, 0
    of_text = -(-_TOKENS // len(texts))
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in lm.blocks]

    def see(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        chosen = torch.linspace(begin, len(x) - 1, min(of_text, len(x) - begin), device=x.device).long()
        seen[block.layer].append((x[chosen], activations.reshape(len(x), -1)[chosen]))

    with torch.inference_mode(), ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(intercept(block, partial(see, block)))
        for done, text in enumerate(texts):
            report(Progress("Calibrating thresholds", done, len(texts), read.unit))
            begin = text.begin
            lm.model(input_ids=inputs(text, lm), use_cache=False, logits_to_keep=1)
    for block, tokens in zip(lm.blocks, seen, strict=True):
        report(Progress("Calibrating thresholds", block.layer, len(lm.blocks), "layers"))
        x, activations = (torch.cat(part) for part in zip(*tokens, strict=True))
        yield block, x, activations
    report(Progress("Calibrating thresholds", len(lm.blocks), len(lm.blocks), "layers"))
