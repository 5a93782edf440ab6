"""Teacher-forced scores of a batch of equally long texts: one dense pass, and one pass a method over the scored tokens.

The dense pass reads prompt and scored tokens at once; a method sees of it the prompt's activations only. The scored
tokens then run again under the method, on the dense pass's KV cache of the prompt. The prompt's last token is run
again with them, because the first scored token is predicted there: so every scored token is computed by the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import metrics
from ..feedforward import FeedForward
from ..methods.base import Selector

if TYPE_CHECKING:
    from transformers import Cache

    from ..models import LoadedModel


@dataclass(frozen=True, eq=False)
class Choice:
    """What one method chose for a batch, and what the choice leaves out of the scored tokens.

    ``masks`` bool [batch, d_ff], ``cett`` and ``recall`` float64 [batch] (``metrics.mask_recall``), one each a layer.
    The two diagnostics look at the dense model's activations, as a race's do.
    """

    masks: tuple[torch.Tensor, ...]
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

    ``dense_loss``, ``sparse_loss`` and ``kl`` in nats; ``agreeing`` tokens; ``kept`` neurons, ``cett`` and ``recall``
    of every layer.
    """

    tokens: int
    dense_loss: float
    sparse_loss: float
    kl: float
    agreeing: int
    kept: tuple[int, ...]
    cett: tuple[float, ...]
    recall: tuple[float, ...]


@torch.inference_mode()
def score(lm: LoadedModel, selectors: Sequence[Selector], ids: torch.Tensor, prompt_tokens: int) -> list[list[Score]]:
    """Scores of every selector (outer) on every text (inner), against the dense model; ``ids`` int64 [batch, T]."""
    reading = read(lm, selectors, ids, prompt_tokens)
    targets = ids[:, prompt_tokens:]
    return [compare(reading.logits, sparse_logits(lm, reading, choice), targets, choice) for choice in reading.choices]


@torch.inference_mode()
def read(lm: LoadedModel, selectors: Sequence[Selector], ids: torch.Tensor, prompt_tokens: int) -> Reading:
    """The dense pass over ``ids`` int64 [batch, T] less their last token, which nothing is predicted from."""
    from transformers import DynamicCache

    batch, length = ids.shape
    scored = length - prompt_tokens
    layers: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[] for _ in selectors]

    def see(block: FeedForward, activations: torch.Tensor, output: torch.Tensor) -> None:
        a = activations.reshape(batch, length - 1, -1)
        y = output.reshape(batch, length - 1, -1)[:, -scored:]
        y = y if block.down.bias is None else y - block.down.bias
        for layer, selector in zip(layers, selectors, strict=True):
            masks = [selector.select(block, each[:prompt_tokens]) for each in a]
            left_out = [_left_out(block, *each) for each in zip(a[:, -scored:], y, masks, strict=True)]
            cett, recall = (torch.tensor(part, dtype=torch.float64) for part in zip(*left_out, strict=True))
            layer.append((torch.stack(masks), cett, recall))

    cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
    with _watched(lm, see):
        logits = lm.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=scored).logits
    cache.crop(-scored)
    choices = tuple(Choice(*(tuple(part) for part in zip(*layer, strict=True))) for layer in layers)
    return Reading(ids[:, -scored - 1 : -1], logits, cache, choices)


@torch.inference_mode()
def sparse_logits(lm: LoadedModel, reading: Reading, choice: Choice) -> torch.Tensor:
    """Logits [batch, scored, vocabulary] of the scored tokens with only the chosen neurons.

    A text whose neurons are all active gets the dense pass's own logits.
    """
    full = torch.stack([mask.all(dim=1) for mask in choice.masks]).all(dim=0)
    if full.all():
        return reading.logits
    logits = follow(lm, reading.cache, reading.inputs, choice.masks)
    return torch.where(full[:, None, None], reading.logits, logits) if full.any() else logits


@torch.inference_mode()
def follow(lm: LoadedModel, cache: Cache, inputs: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of ``inputs`` int64 [batch, tokens] under ``masks``; ``cache`` as it was."""
    with applied(lm, masks):
        logits = lm.model(input_ids=inputs, past_key_values=cache, use_cache=True).logits
    cache.crop(-inputs.shape[1])
    return logits


@contextmanager
def applied(lm: LoadedModel, masks: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the context, text b of a batch runs with the neurons ``masks[layer][b]`` (bool [batch, d_ff]) only.

    Zeroing a neuron's activation is leaving it out: nothing else depends on it. For scoring that is as good as a packed
    block, takes no copies, and lets every text of a batch have a set of its own.
    """
    with ExitStack() as hooks:
        for block, mask in zip(lm.blocks, masks, strict=True):
            if not mask.all():
                hooks.callback(block.down.register_forward_pre_hook(_keeping(mask)).remove)
        yield


def _keeping(mask: torch.Tensor) -> Any:
    def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        activations = inputs[0]
        by_text = activations.view(len(mask), -1, activations.shape[-1])  # opt flattens its batch
        return (by_text * mask[:, None].to(activations.dtype)).view_as(activations)

    return hook


def compare(
    dense_logits: torch.Tensor, sparse_logits: torch.Tensor, targets: torch.Tensor, choice: Choice
) -> list[Score]:
    """One score a text; logits [batch, scored, vocabulary], ``targets`` int64 [batch, scored]."""
    scores = []
    for b, (dense, sparse, expected) in enumerate(zip(dense_logits, sparse_logits, targets, strict=True)):
        forced = metrics.forced(dense, sparse, expected)
        scores.append(
            Score(
                tokens=len(expected),
                dense_loss=float(forced.dense_loss.double().sum()),
                sparse_loss=float(forced.sparse_loss.double().sum()),
                kl=float(forced.kl.double().sum()),
                agreeing=int(forced.agrees.sum()),
                kept=tuple(int(mask[b].sum()) for mask in choice.masks),
                cett=tuple(float(layer[b]) for layer in choice.cett),
                recall=tuple(float(layer[b]) for layer in choice.recall),
            )
        )
    return scores


@contextmanager
def _watched(lm: LoadedModel, see: Any) -> Iterator[None]:
    """Within the context, ``see`` gets every block that runs, what goes into its down projection and what comes out."""
    with ExitStack() as hooks:
        for block in lm.blocks:
            handle = block.down.register_forward_hook(
                lambda _module, inputs, output, block=block: see(block, inputs[0], output)
            )
            hooks.callback(handle.remove)
        yield


def _left_out(block: FeedForward, a: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """Realised CETT and mask recall of one text's scored tokens, ``a`` [scored, d_ff] and ``y`` [scored, d]."""
    if mask.all():
        return 0.0, 1.0
    dropped = (~mask).nonzero().squeeze(1)
    tail = a[:, dropped].float() @ block.down.weight[:, dropped].float().T
    output = y.float().norm(dim=1)
    cett = torch.where(output > 0, tail.norm(dim=1) / output.clamp_min(torch.finfo(torch.float32).tiny), 0.0).mean()
    contributions = a.float().abs() * block.output_norms
    return float(cett), metrics.mask_recall(contributions.cpu().numpy(), mask.cpu().numpy())
