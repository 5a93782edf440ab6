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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from .. import metrics
from ..feedforward import FeedForward, observed
from ..methods.base import Selector
from ..methods.renewal import Choosing, History, Renewing
from ..methods.token import TokenRule, Use, between

if TYPE_CHECKING:
    from transformers import Cache

    from ..models import LoadedModel

Chooser = Selector | TokenRule


class BatchPlan(Protocol):
    """What a method makes of a batch of prompts."""

    def run(self, lm: LoadedModel, cache: Cache, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary] of ``inputs`` int64 [batch, tokens] after what ``cache`` holds."""
        ...

    def kept(self) -> list[torch.Tensor]:
        """Neurons computed for a token of each text, float64 [batch] per layer: the mean over what last ran."""
        ...

    def unread(self) -> torch.Tensor | None:
        """Weight bytes a token of each text left unread in the MLP and elsewhere, float64 [batch, 2]: the mean over
        what last ran. None where they follow from the neurons.
        """
        return None

    def copied(self) -> list[torch.Tensor]:
        """Neurons that were packed anew, float64 [batch] per layer: the mean over the tokens that last ran. Empty where
        sets are packed before the first token only, or not at all.
        """
        return []

    def left_out(self, lm: LoadedModel, reading: Reading) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """Realised CETT and mask recall, float64 [batch] a layer, where they are known from what last ran only."""
        return None


@dataclass(frozen=True, eq=False)
class BatchSets(BatchPlan):
    """Of a sequence-level method: an active set for every text, ``masks`` bool [batch, d_ff] per layer."""

    masks: tuple[torch.Tensor, ...]

    def run(self, lm: LoadedModel, cache: Cache, inputs: torch.Tensor) -> torch.Tensor:
        """Zeroing a neuron's activation is leaving it out: nothing else depends on it. For scoring that is as good as a
        packed block, takes no copies, and lets every text have a set of its own.
        """
        with ExitStack() as hooks:
            for block, mask in zip(lm.blocks, self.masks, strict=True):
                if not mask.all():
                    hooks.callback(block.down.register_forward_pre_hook(_keeping(mask)).remove)
            return _logits(lm, cache, inputs)

    def kept(self) -> list[torch.Tensor]:
        return [mask.sum(dim=1).double() for mask in self.masks]


class BatchRenewed(BatchPlan):
    """Of active sets that are chosen anew: every so many tokens, from what a dense step shows.

    ``masks`` are the prompts'; ``histories`` go with them, a layer's (outer) of every text (inner).
    """

    def __init__(self, masks: tuple[torch.Tensor, ...], histories: list[list[History]], every: int) -> None:
        self.masks = masks
        self.histories = histories
        self.every = every
        self.used: list[tuple[torch.Tensor, ...]] = []  # what last ran, the masks of a token each
        self.packed: list[tuple[torch.Tensor, ...]] = []  # those that were chosen anew

    def run(self, lm: LoadedModel, cache: Cache, inputs: torch.Tensor) -> torch.Tensor:
        plan, histories, logits = BatchSets(self.masks), self.histories, []
        self.used.clear()
        self.packed.clear()
        everything = tuple(torch.ones_like(mask) for mask in self.masks)
        for stretch in inputs.split(self.every, dim=1):
            sparse, last = stretch[:, : self.every - 1], stretch[:, self.every - 1 :]
            if sparse.shape[1]:
                logits.append(plan.run(lm, cache, sparse))
                self.used += [plan.masks] * sparse.shape[1]
            if last.shape[1]:
                seen: list[torch.Tensor] = []
                with observed(lm.blocks, lambda _block, a: seen.append(a)):  # noqa: B023 - used within the turn
                    logits.append(_logits(lm, cache, last))
                self.used.append(everything)
                histories = [
                    [old.seen(token[None], self.every) for old, token in zip(layer, a, strict=True)]
                    for layer, a in zip(histories, seen, strict=True)
                ]
                plan = BatchSets(tuple(torch.stack([text.active() for text in layer]) for layer in histories))
                self.packed.append(plan.masks)
        return torch.cat(logits, dim=1)

    def kept(self) -> list[torch.Tensor]:
        return [self._by_token(layer).sum(dim=2).double().mean(dim=1) for layer in range(len(self.masks))]

    def copied(self) -> list[torch.Tensor]:
        """As the compiled step does: a set is copied whole unless it is everything."""
        counts = [torch.zeros(len(mask), dtype=torch.float64, device=mask.device) for mask in self.masks]
        for masks in self.packed:
            leaves_out = ~torch.stack([mask.all(dim=1) for mask in masks]).all(dim=0)
            counts = [count + leaves_out * mask.sum(dim=1) for count, mask in zip(counts, masks, strict=True)]
        return [count / len(self.used) for count in counts]

    def left_out(self, lm: LoadedModel, reading: Reading) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        batch, scored = reading.inputs.shape
        found: list[tuple[torch.Tensor, torch.Tensor]] = []

        def see(block: FeedForward, activations: torch.Tensor) -> None:
            a, masks = activations.view(batch, scored, -1), self._by_token(block.layer)
            found.append(_left_out(block, a, _tail(block, a, masks), _output_norms(block, a), masks))

        with observed(lm.blocks, see):
            _logits(lm, reading.cache, reading.inputs)
        reading.cache.crop(-scored)
        return [cett for cett, _ in found], [recall for _, recall in found]

    def _by_token(self, layer: int) -> torch.Tensor:
        """Bool [batch, tokens, d_ff] of what last ran."""
        return torch.stack([masks[layer] for masks in self.used], dim=1)


class BatchRule(BatchPlan):
    """Of a token-level method."""

    def __init__(self, rule: TokenRule, batch: int) -> None:
        self.rule = rule
        self.batch = batch
        self._kept: list[torch.Tensor] = []
        self._unread: list[torch.Tensor] = []

    def run(self, lm: LoadedModel, cache: Cache, inputs: torch.Tensor) -> torch.Tensor:
        self._kept.clear()
        self._unread.clear()
        with self.rule.on(lm.blocks, self._see):
            return _logits(lm, cache, inputs)

    def kept(self) -> list[torch.Tensor]:
        return self._kept

    def unread(self) -> torch.Tensor | None:
        return torch.stack(self._unread).sum(dim=0) if self._unread else None

    def _see(self, _block: FeedForward, use: Use) -> None:
        self._kept.append(use.neurons.view(self.batch, -1).mean(dim=1))
        if use.unread is not None:
            self._unread.append(use.unread.view(self.batch, -1, 2).mean(dim=1))


@dataclass(frozen=True, eq=False)
class Choice:
    """What one method makes of a batch, and what that leaves out of the scored tokens.

    ``cett`` and ``recall`` (``metrics.mask_recall``) float64 [batch] per layer; they look at the dense model's
    activations, as a race's do.
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
def score(lm: LoadedModel, choosers: Sequence[Chooser], ids: torch.Tensor, prompt_tokens: int) -> list[list[Score]]:
    """Scores of every chooser (outer) on every text (inner), against the dense model; ``ids`` int64 [batch, T]."""
    reading = read(lm, choosers, ids, prompt_tokens)
    targets = ids[:, prompt_tokens:]
    return [compare(lm, reading.logits, reading, choice, targets) for choice in reading.choices]


@torch.inference_mode()
def read(lm: LoadedModel, choosers: Sequence[Chooser], ids: torch.Tensor, prompt_tokens: int) -> Reading:
    """The dense pass over ``ids`` int64 [batch, T] less their last token, which nothing is predicted from."""
    from transformers import DynamicCache

    batch, length = ids.shape
    scored = length - prompt_tokens
    layers: list[list[_Layer]] = [[] for _ in choosers]

    def see(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        a = activations.reshape(batch, length - 1, -1)
        output = _output_norms(block, a[:, -scored:])
        for layer, chooser in zip(layers, choosers, strict=True):
            masks, lacking, histories = _chosen(chooser, block, x.view(batch, length - 1, -1), a, prompt_tokens)
            layer.append(_Layer(masks, histories, *_left_out(block, a[:, -scored:], lacking, output, masks)))

    cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
    with ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(between(block, partial(see, block)))
        logits = lm.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=scored).logits
    cache.crop(-scored)
    choices = tuple(_choice(chooser, layer, batch) for chooser, layer in zip(choosers, layers, strict=True))
    return Reading(ids[:, -scored - 1 : -1], logits, cache, choices)


class _Layer(NamedTuple):
    """What a chooser makes of a layer, and what that leaves out."""

    masks: torch.Tensor
    histories: list[History]
    cett: torch.Tensor
    recall: torch.Tensor


def _choice(chooser: Chooser, layers: list[_Layer], batch: int) -> Choice:
    masks, histories, cett, recall = zip(*layers, strict=True)
    if isinstance(chooser, TokenRule):
        return Choice(BatchRule(chooser, batch), cett, recall)
    if isinstance(chooser, Renewing):
        return Choice(BatchRenewed(masks, list(histories), chooser.every), cett, recall)
    return Choice(BatchSets(masks), cett, recall)


def _chosen(
    chooser: Chooser, block: FeedForward, x: torch.Tensor, a: torch.Tensor, prompt_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, list[History]]:
    """Bool [batch, d_ff] chosen from the prompts, of a rule [batch, scored, d_ff]; what its output then lacks for
    the scored tokens, [batch, scored, d]; each text's history, if there are any. ``x`` and ``a`` are [batch, T, ...].
    """
    scored_a = a[:, prompt_tokens - 1 :]
    if isinstance(chooser, TokenRule):
        inputs = block, x[:, prompt_tokens - 1 :].flatten(0, 1), scored_a.flatten(0, 1)
        lacking = chooser.lacking(*inputs).view(*scored_a.shape[:2], -1)
        return chooser.fire(*inputs).view(scored_a.shape), lacking, []
    texts = [Choosing(chooser) for _ in a]
    for text, each in zip(texts, a, strict=True):
        text.see(block, each[:prompt_tokens])
    masks = torch.stack([text.masks[0] for text in texts])
    return masks, _tail_of_sets(block, scored_a, masks), [history for text in texts for history in text.histories]


@torch.inference_mode()
def follow(lm: LoadedModel, cache: Cache, inputs: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of ``inputs`` int64 [batch, tokens] under ``plan``; ``cache`` as it was."""
    logits = plan.run(lm, cache, inputs)
    cache.crop(-inputs.shape[1])
    return logits


def _logits(lm: LoadedModel, cache: Cache, inputs: torch.Tensor) -> torch.Tensor:
    return lm.model(input_ids=inputs, past_key_values=cache, use_cache=True).logits


def _keeping(mask: torch.Tensor) -> Any:
    def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        activations = inputs[0]
        by_text = activations.view(len(mask), -1, activations.shape[-1])  # opt flattens its batch
        return (by_text * mask[:, None].to(activations.dtype)).view_as(activations)

    return hook


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
    cett, recall = plan.left_out(lm, reading) or (choice.cett, choice.recall)
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


def _output_norms(block: FeedForward, a: torch.Tensor) -> torch.Tensor:
    """``||y||`` of every token, without the output bias: [batch, T, d_ff] -> float32 [batch, T]."""
    return (a.float() @ block.output_weight().T).norm(dim=2)


def _tail(block: FeedForward, a: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The part in the output of the neurons that ``masks`` leave out: [batch, T, d_ff] -> float32 [batch, T, d]."""
    return (a.float() * ~masks) @ block.output_weight().T


def _tail_of_sets(block: FeedForward, a: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The same for ``masks`` [batch, d_ff]: a set serves a whole text, so only what it leaves out is multiplied."""
    weight = block.output_weight()
    return torch.stack([each[:, ~mask].float() @ weight[:, ~mask].T for each, mask in zip(a, masks, strict=True)])


def _left_out(
    block: FeedForward, a: torch.Tensor, lacking: torch.Tensor, output: torch.Tensor, masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Realised CETT and mask recall of each text's scored tokens, float64 [batch].

    ``a`` [batch, scored, d_ff] are the dense activations, ``lacking`` [batch, scored, d] what the output lacks,
    ``output`` float32 [batch, scored] norms, ``masks`` bool [batch, d_ff] or [batch, scored, d_ff].
    """
    found = [_of_text(block, *each) for each in zip(a, lacking, output, masks, strict=True)]
    cett, recall = (torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))
    return cett, recall


def _of_text(
    block: FeedForward, a: torch.Tensor, lacking: torch.Tensor, output: torch.Tensor, mask: torch.Tensor
) -> tuple[float, float]:
    """The same of one text, all less their first dimension."""
    if mask.all() and not lacking.any():
        return 0.0, 1.0
    error = lacking.norm(dim=1)
    cett = torch.where(output > 0, error / output.clamp_min(torch.finfo(torch.float32).tiny), 0.0).mean()
    contributions = a.float().abs() * block.output_norms
    return float(cett), metrics.mask_recall(contributions.cpu().numpy(), mask.cpu().numpy())
