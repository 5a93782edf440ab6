"""What sequence-level methods choose from prior, prompt and generated tokens: the specification, in float64.

A prompt of T tokens, whose evidence is e_t; a prior that weighs as much as w tokens; ``first`` tokens run dense and
count four times each, and a dense step every ``refresh`` tokens after them, which counts ``refresh`` times: sets follow
from ``(sum e_t + w prior + sum counts e) / (T + w + sum counts)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny import PROMPT
from transformers import DynamicCache

from tda_demo.calibration.priors import kept_prior
from tda_demo.calibration.sources import ANSWERS
from tda_demo.methods import ActiveSets, CoreInfer, Method
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.hooks import observe
from tda_demo.model.loading import LoadedModel

FIRST_COUNTS = 4
WIDTH = 70
PLAIN = ("opt", "gpt_neox")
TOKENS = [40, 41, 42, 50, 51, 52, 60]


@dataclass(frozen=True)
class Served:
    """A token's logits, the neurons it had in every layer, and how many were copied then for those that follow."""

    logits: torch.Tensor
    sets: list[list[int]]
    copied: int


def neuron_bytes(family: str) -> int:
    """Rows of float32, and the bias of a plain block's first matrix."""
    return (2 * 32 + 1 if family in PLAIN else 3 * 32) * 4


def plant_priors(lm: LoadedModel, method: Any) -> list[np.ndarray]:
    """Random means of the method's evidence, kept for ``lm`` as if they had been measured; as they are read again."""
    random = np.random.default_rng(5)
    scale = 0.5 if isinstance(method, CoreInfer) else 2 / WIDTH
    rows = [(scale * random.random(WIDTH) * WIDTH).astype("<f2").astype(np.float64) / WIDTH for _ in lm.blocks]
    kept_prior(lm, method.evidence_kind, ANSWERS).save(rows)
    return rows


def evidence(method: Any, block: FeedForward, a: np.ndarray) -> np.ndarray:
    """Of tokens with activations ``a`` float64 [T, d_ff], summed: [d_ff]."""
    if isinstance(method, CoreInfer):
        votes = np.zeros(a.shape[1])
        for token in np.abs(a):
            best = sorted(range(len(token)), key=lambda j: (-token[j], j))[: int(method.token_share * len(token))]
            votes[[j for j in best if token[j] > 0]] += 1
        return votes
    relative = a**2 / (a**2).sum(axis=1, keepdims=True).clip(1e-300)
    if getattr(method, "weighted", False):
        relative = relative * (block.down.weight.double().numpy() ** 2).sum(axis=0)
    return relative.sum(axis=0)


def chosen(method: Any, policy: Any, layer: int, mean: np.ndarray) -> np.ndarray:
    """Bool [d_ff], by the mean evidence of a token."""
    if hasattr(policy, "limits"):
        # A limit found in the prompt is the score of a neuron, which is not to be lost by rounding.
        return np.sqrt(mean) >= policy.limits[layer] * (1 - 1e-6)
    keep = int(policy.keep[layer] * len(mean))
    best = sorted(range(len(mean)), key=lambda j: (-mean[j], j))[:keep]
    return np.isin(np.arange(len(mean)), best)


@torch.inference_mode()
def by_hand(lm: LoadedModel, method: Any, tokens: list[int], prompt: list[int] | None = None) -> list[Served]:
    """What each of ``tokens`` after the prompt has, from transformers with hooks, everything summed up in float64.

    ``lm`` is written to nowhere. The limits of thresholds are the policy's: how they are found is tested elsewhere.
    """
    policy = bound(lm, method)
    prior = plant_priors(lm, method) if getattr(method, "prior", 0) else [np.zeros(WIDTH)] * len(lm.blocks)
    weight, refresh = getattr(method, "prior", 0.0), getattr(method, "refresh", 0)
    ids = torch.tensor([prompt or lm.prompt_ids(PROMPT)])
    seen: list[torch.Tensor] = []
    cache = DynamicCache(config=lm.model.config)

    def look(block: FeedForward, a: torch.Tensor) -> None:
        policy.select(block, a)  # finds the limits of a prompt
        seen.append(a.double())

    with observe(lm.blocks, look):
        lm.model(input_ids=ids, past_key_values=cache)
    pairs = zip(lm.blocks, seen, prior, strict=True)
    sums = [evidence(method, block, a.numpy()) + weight * known for block, a, known in pairs]
    count = ids.shape[1] + weight

    def sets() -> list[np.ndarray]:
        if hasattr(policy, "scores"):  # fixed ones
            scores = [np.asarray(each, dtype=np.float64) for each in policy.scores]
            return [chosen(method, policy, layer, each) for layer, each in enumerate(scores)]
        return [chosen(method, policy, layer, each / count) for layer, each in enumerate(sums)]

    now = sets()
    served = []
    for index, token in enumerate(tokens, start=1):
        after_first = index - method.first
        due = bool(refresh) and after_first > 0 and after_first % refresh == 0
        dense = after_first <= 0 or due
        active = [np.ones(WIDTH, dtype=bool) if dense else each for each in now]
        seen.clear()
        plan = ActiveSets.of([torch.from_numpy(each) for each in active])
        with observe(lm.blocks, lambda _block, a: seen.append(a.double())), plan.on(lm.blocks):
            logits = lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        if dense:
            counts = refresh if due else FIRST_COUNTS
            new = (counts * evidence(method, block, a.numpy()) for block, a in zip(lm.blocks, seen, strict=True))
            sums = [old + more for old, more in zip(sums, new, strict=True)]
            count += counts
            now = sets()
        renewed = due or (after_first == 0 and refresh != 1)
        copied = sum(int(each.sum()) for each in now) if renewed and refresh != 1 else 0
        served.append(Served(logits, [np.flatnonzero(each).tolist() for each in active], copied))
    return served


def bound(lm: LoadedModel, method: Method) -> Any:
    """The policy, with planted priors where it has any."""
    if getattr(method, "prior", 0):
        plant_priors(lm, method)
    return method.bind(lm)
