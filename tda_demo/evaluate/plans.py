"""What each kind of method makes of a batch of prompts, and how the tokens after them run under it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..feedforward import FeedForward, observed
from ..methods.base import Selector
from ..methods.renewal import History
from ..methods.token import TokenRule, Use
from .left_out import left_out, output_norms, tail

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

    def left_out(
        self, lm: LoadedModel, cache: Cache, inputs: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
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
            return logits_of(lm, cache, inputs)

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
                    logits.append(logits_of(lm, cache, last))
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

    def left_out(
        self, lm: LoadedModel, cache: Cache, inputs: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        batch, scored = inputs.shape
        found: list[tuple[torch.Tensor, torch.Tensor]] = []

        def see(block: FeedForward, activations: torch.Tensor) -> None:
            a, masks = activations.view(batch, scored, -1), self._by_token(block.layer)
            found.append(left_out(block, a, tail(block, a, masks), output_norms(block, a), masks))

        with observed(lm.blocks, see):
            logits_of(lm, cache, inputs)
        cache.crop(-scored)
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
            return logits_of(lm, cache, inputs)

    def kept(self) -> list[torch.Tensor]:
        return self._kept

    def unread(self) -> torch.Tensor | None:
        return torch.stack(self._unread).sum(dim=0) if self._unread else None

    def _see(self, _block: FeedForward, use: Use) -> None:
        self._kept.append(use.neurons.view(self.batch, -1).mean(dim=1))
        if use.unread is not None:
            self._unread.append(use.unread.view(self.batch, -1, 2).mean(dim=1))


def logits_of(lm: LoadedModel, cache: Cache, inputs: torch.Tensor) -> torch.Tensor:
    return lm.model(input_ids=inputs, past_key_values=cache, use_cache=True).logits


def _keeping(mask: torch.Tensor) -> Any:
    def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        activations = inputs[0]
        by_text = activations.view(len(mask), -1, activations.shape[-1])  # opt flattens its batch
        return (by_text * mask[:, None].to(activations.dtype)).view_as(activations)

    return hook
