"""Teacher-forced scores of a batch of equally long texts, in one dense pass and one pass a method.

The dense pass reads prompt and scored tokens at once; a method sees of it the prompt's activations only. The scored
tokens then run again under the method, on the dense pass's KV cache of the prompt. The prompt's last token is run
again with them, because the first scored token is predicted there: so every scored token is computed by the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..methods.plan import LayerUse, Plan, PlanSchedule
from ..methods.policy import Policy
from ..model.feedforward import FeedForward
from ..model.hooks import intercept, observe
from ..stats import metrics
from .fidelity import Fidelity, ServedPlans, fidelity

if TYPE_CHECKING:
    from transformers import Cache

    from ..model.loading import LoadedModel

SeeDense = Callable[[FeedForward, torch.Tensor, torch.Tensor], None]
"""Gets a block's input [texts, T, d] and activations [texts, T, d_ff]."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """What one policy makes of a batch of texts: its plan, and how true it is at the scored tokens, layer by layer.

    ``fidelity`` is None where it is not asked for, or known only once the plan and those after it have run.
    """

    plan: Plan
    fidelity: list[Fidelity] | None


@dataclass(frozen=True, eq=False)
class Reading:
    """The dense pass: ``logits`` [texts, scored, vocabulary] that predict the scored tokens, in the model's dtype.

    ``inputs`` int64 [texts, scored] are the tokens those logits come from; ``cache`` holds what precedes them.
    ``plans`` are what the policies make of the texts; ``with_fidelity`` says whether CETT and recall are asked for.
    """

    inputs: torch.Tensor
    logits: torch.Tensor
    cache: Cache
    plans: tuple[BatchPlan, ...]
    with_fidelity: bool


@dataclass(frozen=True, eq=False)
class SparsePass:
    """Tokens under a plan: ``logits`` [texts, tokens, vocabulary], and means over the tokens of each text.

    ``kept`` neurons, float64 [texts, layers]; ``unread`` weight bytes in the MLP and elsewhere, float64 [texts, 2],
    None where they follow from the neurons; ``copied`` neurons that were packed anew, and low-bit ones,
    float64 [texts, 2] a layer, [] where sets are packed before the first token only, or not at all. ``served`` are the
    plans that served.
    """

    logits: torch.Tensor
    kept: torch.Tensor
    unread: torch.Tensor | None
    copied: list[torch.Tensor]
    served: ServedPlans


@dataclass(frozen=True)
class Score:
    """One text under one method; sums over its scored ``tokens``, so that texts can be added up.

    ``dense_loss``, ``sparse_loss`` and ``kl`` in nats; ``agreeing`` tokens; of every layer ``kept`` neurons (mean over
    tokens), ``cett`` and ``recall``; ``unread`` weight bytes a token in the MLP and elsewhere (mean), empty where they
    follow from ``kept``; ``copied`` neurons a token that were packed anew, and low-bit ones;
    empty where none were.
    """

    tokens: int
    dense_loss: float
    sparse_loss: float
    kl: float
    agreeing: int
    kept: tuple[float, ...]
    cett: tuple[float, ...]
    recall: tuple[float, ...]
    unread: tuple[float, ...] = ()
    copied: tuple[tuple[float, float], ...] = ()


@torch.inference_mode()
def score_texts(
    lm: LoadedModel, policies: Sequence[Policy], ids: torch.Tensor, prompt_tokens: int, *, with_fidelity: bool = True
) -> list[list[Score]]:
    """Scores of every policy (outer) on every text (inner), against the dense model; ``ids`` int64 [texts, T]."""
    reading = read_texts(lm, policies, ids, prompt_tokens, with_fidelity=with_fidelity)
    targets = ids[:, prompt_tokens:]
    return [score_plan(lm, reading.logits, reading, batch, targets) for batch in reading.plans]


@torch.inference_mode()
def read_texts(
    lm: LoadedModel, policies: Sequence[Policy], ids: torch.Tensor, prompt_tokens: int, *, with_fidelity: bool = True
) -> Reading:
    """The dense pass over ``ids`` int64 [texts, T] less their last token, which nothing is predicted from.

    Without ``with_fidelity`` no CETT and no recall is measured, which takes a third of the time of a token-level
    method.
    """
    from transformers import DynamicCache

    scored = ids.shape[1] - prompt_tokens
    readers = [policy.reader() for policy in policies]
    by_policy: list[list[Fidelity]] = [[] for _ in policies]

    def see(block: FeedForward, x: torch.Tensor, a: torch.Tensor) -> None:
        for reader, layers in zip(readers, by_policy, strict=True):
            reader.see(block, x[:, :prompt_tokens], a[:, :prompt_tokens])
            if with_fidelity and (plan := reader.plan()).steps is None:
                layers.append(fidelity(block, x[:, -scored:], a[:, -scored:], [(plan, scored)]))

    cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
    logits = dense_pass(lm, cache, ids[:, :-1], see, logits_to_keep=scored)
    cache.crop(-scored)
    plans = tuple(BatchPlan(reader.plan(), layers or None) for reader, layers in zip(readers, by_policy, strict=True))
    return Reading(ids[:, -scored - 1 : -1], logits, cache, plans, with_fidelity)


@torch.inference_mode()
def dense_pass(
    lm: LoadedModel, cache: Cache, inputs: torch.Tensor, see: SeeDense, *, logits_to_keep: int = 0
) -> torch.Tensor:
    """Logits [texts, tokens, vocabulary] of ``inputs`` int64 [texts, tokens], the last ones where only some are kept;
    ``see`` gets every block's input and activations. What was fed stays in ``cache``.
    """
    texts = len(inputs)

    def by_text(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        see(block, x.view(texts, -1, x.shape[-1]), activations.reshape(texts, -1, activations.shape[-1]))

    with ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(intercept(block, partial(by_text, block)))
        return lm.model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=logits_to_keep).logits


@torch.inference_mode()
def sparse_pass(lm: LoadedModel, cache: Cache, inputs: torch.Tensor, plan: Plan) -> SparsePass:
    """``inputs`` int64 [texts, tokens] under ``plan`` and those that take its place; ``cache`` stays as it was."""
    done = pass_under(lm, cache, inputs, PlanSchedule(plan))
    cache.crop(-inputs.shape[1])
    return done


@torch.inference_mode()
def pass_under(lm: LoadedModel, cache: Cache, inputs: torch.Tensor, schedule: PlanSchedule) -> SparsePass:
    """``inputs`` int64 [texts, tokens] under the plans of ``schedule``, which goes on; they stay in ``cache``."""
    texts, tokens = inputs.shape
    logits: list[torch.Tensor] = []
    served: list[tuple[Plan, int]] = []
    kept = torch.zeros(texts, len(lm.blocks), dtype=torch.float64)
    unread: list[torch.Tensor] = []
    copied = [] if schedule.plan.steps is None else [torch.zeros(texts, 2, dtype=torch.float64) for _ in lm.blocks]

    def see(block: FeedForward, use: LayerUse) -> None:
        kept[:, block.layer] += use.neurons.view(texts, -1).sum(dim=1).cpu()
        if use.unread is not None:
            unread.append(use.unread.view(texts, -1, 2).sum(dim=1).cpu())  # layers may lie on several devices

    at = 0
    while at < tokens:
        serving, count = schedule.plan, schedule.ahead(tokens - at)
        activations: list[torch.Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(serving.on(lm.blocks, see))
            if serving.observes:
                stack.enter_context(observe(lm.blocks, lambda _block, a: activations.append(a)))  # noqa: B023
            chunk = inputs[:, at : at + count]
            logits.append(lm.model(input_ids=chunk, past_key_values=cache, use_cache=True).logits)
        served.append((serving, count))
        at += count
        if schedule.feed(count, [layer.view(texts, count, -1) for layer in activations]) and (
            packed := schedule.plan.packs()
        ):
            copied = [total + new.cpu() for total, new in zip(copied, packed, strict=True)]
    return SparsePass(
        logits=torch.cat(logits, dim=1),
        kept=kept / tokens,
        unread=torch.stack(unread).sum(dim=0) / tokens if unread else None,
        copied=[total / tokens for total in copied],
        served=served,
    )


@torch.inference_mode()
def score_plan(
    lm: LoadedModel, expected: torch.Tensor, reading: Reading, batch: BatchPlan, targets: torch.Tensor
) -> list[Score]:
    """One score a text against the dense model's ``expected`` [texts, scored, vocabulary] on ``targets`` int64 [texts,
    scored]. A text whose neurons are all active gets the reading's own logits.
    """
    widths = torch.tensor([block.d_ff for block in lm.blocks], dtype=torch.float64)
    texts, scored = targets.shape
    if batch.plan.is_dense:
        sparse = SparsePass(reading.logits, widths.expand(texts, -1), None, [], [(batch.plan, scored)])
    else:
        sparse = sparse_pass(lm, reading.cache, reading.inputs, batch.plan)
    exact = (sparse.kept == widths).all(dim=1)
    if sparse.unread is not None:
        exact &= (sparse.unread == 0).all(dim=1)
    layers = batch.fidelity or (_fidelity_afterwards(lm, reading, sparse.served) if reading.with_fidelity else [])
    scores = []
    for text, is_exact in enumerate(exact):
        logits = reading.logits[text] if is_exact else sparse.logits[text]
        forced = metrics.compare_forced(expected[text], logits, targets[text])
        scores.append(
            Score(
                tokens=scored,
                dense_loss=float(forced.dense_loss.double().sum()),
                sparse_loss=float(forced.sparse_loss.double().sum()),
                kl=float(forced.kl.double().sum()),
                agreeing=int(forced.agrees.sum()),
                kept=tuple(sparse.kept[text].tolist()),
                cett=tuple(float(layer.cett[text]) for layer in layers),
                recall=tuple(float(layer.recall[text]) for layer in layers),
                unread=() if sparse.unread is None else tuple(sparse.unread[text].tolist()),
                copied=tuple((float(layer[text, 0]), float(layer[text, 1])) for layer in sparse.copied),
            )
        )
    return scores


def _fidelity_afterwards(lm: LoadedModel, reading: Reading, served: ServedPlans) -> list[Fidelity]:
    """Layer by layer, in a dense pass of its own: for plans that are known only once they have served."""
    layers: list[Fidelity] = []
    dense_pass(lm, reading.cache, reading.inputs, lambda block, x, a: layers.append(fidelity(block, x, a, served)))
    reading.cache.crop(-reading.inputs.shape[1])
    return layers
