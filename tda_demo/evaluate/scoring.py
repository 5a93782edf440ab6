"""Teacher-forced scores of a batch of equally long texts: one dense pass, and one pass a method over the scored tokens.

The dense pass reads prompt and scored tokens at once; a method sees of it the prompt's activations only. The scored
tokens then run again under the method, on the dense pass's KV cache of the prompt. The prompt's last token is run
again with them, because the first scored token is predicted there: so every scored token is computed by the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import metrics
from ..feedforward import FeedForward
from ..methods.renewal import Choosing, History, Renewing
from ..methods.token import TokenRule, between
from .left_out import left_out, output_norms, tail_of_sets
from .plans import BatchPlan, BatchRenewed, BatchRule, BatchSets, Chooser

if TYPE_CHECKING:
    from transformers import Cache

    from ..models import LoadedModel


@dataclass(frozen=True, eq=False)
class Choice:
    """What one method makes of a batch, and what that leaves out of the scored tokens.

    ``cett`` and ``recall`` (``metrics.mask_recall``) float64 [batch] per layer; they look at the dense model's
    activations, as a race's do. Empty where nobody asked for them.
    """

    plan: BatchPlan
    cett: tuple[torch.Tensor, ...]
    recall: tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """The dense pass: ``logits`` [batch, scored, vocabulary] that predict the scored tokens, in the model's dtype.

    ``inputs`` int64 [batch, scored] are the tokens those logits come from; ``cache`` holds what precedes them.
    """

    inputs: torch.Tensor
    logits: torch.Tensor
    cache: Cache
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Score:
    """One text under one method; sums over its scored ``tokens``, so that texts can be added up.

    ``dense_loss``, ``sparse_loss`` and ``kl`` in nats; ``agreeing`` tokens; of every layer ``kept`` neurons (mean over
    tokens), ``cett`` and ``recall``; ``unread`` weight bytes a token in the MLP and elsewhere (mean), empty where they
    follow from ``kept``; ``copied`` neurons a token that were packed anew, empty where none were.
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
    copied: tuple[float, ...] = ()


@torch.inference_mode()
def score(
    lm: LoadedModel, choosers: Sequence[Chooser], ids: torch.Tensor, prompt_tokens: int, *, errors: bool = True
) -> list[list[Score]]:
    """Scores of every chooser (outer) on every text (inner), against the dense model; ``ids`` int64 [batch, T]."""
    reading = read(lm, choosers, ids, prompt_tokens, errors=errors)
    targets = ids[:, prompt_tokens:]
    return [compare(lm, reading.logits, reading, choice, targets) for choice in reading.choices]


@torch.inference_mode()
def read(
    lm: LoadedModel, choosers: Sequence[Chooser], ids: torch.Tensor, prompt_tokens: int, *, errors: bool = True
) -> Reading:
    """The dense pass over ``ids`` int64 [batch, T] less their last token, which nothing is predicted from.

    Without ``errors`` no CETT and no recall is measured, which takes a third of the time of a token-level method.
    """
    from transformers import DynamicCache

    batch, length = ids.shape
    scored = length - prompt_tokens
    layers: list[list[_Layer]] = [[] for _ in choosers]

    def see(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        x, a = (each.reshape(batch, length - 1, -1) for each in (x, activations))
        output = output_norms(block, a[:, -scored:]) if errors else None
        for layer, chooser in zip(layers, choosers, strict=True):
            masks, histories = _chosen(chooser, block, x, a, prompt_tokens)
            found = None
            if output is not None:
                lacking = _lacking(chooser, block, x[:, -scored:], a[:, -scored:], masks)
                found = left_out(block, a[:, -scored:], lacking, output, masks)
            layer.append(_Layer(masks, histories, found))

    cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
    with ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(between(block, partial(see, block)))
        logits = lm.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=scored).logits
    cache.crop(-scored)
    choices = tuple(_choice(chooser, layer, batch) for chooser, layer in zip(choosers, layers, strict=True))
    return Reading(ids[:, -scored - 1 : -1], logits, cache, choices)


class _Layer(NamedTuple):
    """What a chooser makes of a layer, and the CETT and recall of that."""

    masks: torch.Tensor
    histories: list[History]
    errors: tuple[torch.Tensor, torch.Tensor] | None


def _choice(chooser: Chooser, layers: list[_Layer], batch: int) -> Choice:
    masks, histories, errors = zip(*layers, strict=True)
    cett, recall = zip(*errors, strict=True) if None not in errors else ((), ())
    if isinstance(chooser, TokenRule):
        return Choice(BatchRule(chooser, batch), cett, recall)
    if isinstance(chooser, Renewing):
        return Choice(BatchRenewed(masks, list(histories), chooser.every), cett, recall)
    return Choice(BatchSets(masks), cett, recall)


def _chosen(
    chooser: Chooser, block: FeedForward, x: torch.Tensor, a: torch.Tensor, prompt_tokens: int
) -> tuple[torch.Tensor, list[History]]:
    """Bool [batch, d_ff] chosen from the prompts, of a rule [batch, scored, d_ff]; each text's history, if there are
    any. ``x`` and ``a`` are [batch, T, ...].
    """
    if isinstance(chooser, TokenRule):
        scored_x, scored_a = (each[:, prompt_tokens - 1 :] for each in (x, a))
        fired = chooser.fire(block, scored_x.flatten(0, 1), scored_a.flatten(0, 1))
        return fired.view(scored_a.shape), []
    texts = [Choosing(chooser) for _ in a]
    for text, each in zip(texts, a, strict=True):
        text.see(block, each[:prompt_tokens])
    masks = torch.stack([text.masks[0] for text in texts])
    return masks, [history for text in texts for history in text.histories]


def _lacking(
    chooser: Chooser, block: FeedForward, x: torch.Tensor, a: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """What the block's output lacks for the scored tokens, [batch, scored, d], of their ``x`` and ``a``."""
    if isinstance(chooser, TokenRule):
        return chooser.lacking(block, x.flatten(0, 1), a.flatten(0, 1)).view(*a.shape[:2], -1)
    return tail_of_sets(block, a, masks)


@torch.inference_mode()
def follow(lm: LoadedModel, cache: Cache, inputs: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of ``inputs`` int64 [batch, tokens] under ``plan``; ``cache`` as it was."""
    logits = plan.run(lm, cache, inputs)
    cache.crop(-inputs.shape[1])
    return logits


@torch.inference_mode()
def compare(
    lm: LoadedModel, expected: torch.Tensor, reading: Reading, choice: Choice, targets: torch.Tensor
) -> list[Score]:
    """One score a text against the dense model's ``expected`` [batch, scored, vocabulary] on ``targets``.

    A text whose neurons are all active gets the reading's own logits: ``targets`` int64 [batch, scored].
    """
    everything = torch.tensor([block.d_ff for block in lm.blocks])
    plan = choice.plan
    if isinstance(plan, BatchSets) and all(mask.all() for mask in plan.masks):
        logits = reading.logits
    else:
        logits = follow(lm, reading.cache, reading.inputs, plan)
    kept = torch.stack(plan.kept()).T.cpu()  # [batch, layers]
    exact = (kept == everything).all(dim=1)
    cett, recall = choice.cett, choice.recall
    if cett and (known := plan.left_out(lm, reading.cache, reading.inputs)) is not None:
        cett, recall = known
    unread, copied = plan.unread(), plan.copied()
    if unread is not None:
        exact &= (unread == 0).all(dim=1).cpu()
    scores = []
    for b, full in enumerate(exact):
        forced = metrics.forced(expected[b], reading.logits[b] if full else logits[b], targets[b])
        scores.append(
            Score(
                tokens=len(targets[b]),
                dense_loss=float(forced.dense_loss.double().sum()),
                sparse_loss=float(forced.sparse_loss.double().sum()),
                kl=float(forced.kl.double().sum()),
                agreeing=int(forced.agrees.sum()),
                kept=tuple(kept[b].tolist()),
                cett=tuple(float(layer[b]) for layer in cett),
                recall=tuple(float(layer[b]) for layer in recall),
                unread=() if unread is None else tuple(unread[b].tolist()),
                copied=tuple(float(layer[b]) for layer in copied),
            )
        )
    return scores
