"""Texts read by a private view of a model, what is kept of them, and how alike two active sets or two rankings are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.feedforward import FeedForward, find_blocks
from ..model.hooks import observe
from ..support.errors import UserError
from ..support.lazy import inference_mode, torch

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


_SPACES = ("Ġ", "▁", " ")  # what a space before a word is written as in byte-level BPE, in SentencePiece, in plain


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What a call saw: ``activations`` float32 [sequences, tokens, d_ff] per layer; ``logits`` float32 [sequences,
    vocabulary] after the last token."""

    activations: list[torch.Tensor]
    logits: torch.Tensor


class Stopped(Exception):
    """Breaks off, between two layers, a reading that nobody waits for any more."""


class Reader:
    """A second module tree over the weights of ``lm``: hooks put into it are never seen by whoever else runs ``lm``."""

    def __init__(self, lm: LoadedModel, stop: threading.Event | None = None) -> None:
        from ..decode.shared_model import share_weights

        self.stop = stop or threading.Event()
        self.model = share_weights(lm.model)
        self.blocks = find_blocks(self.model)
        self.device = lm.device

    @inference_mode
    def read(self, ids: torch.Tensor, last: int | None = None, **inputs: Any) -> ForwardPass:
        """Reads ``ids`` int64 [sequences, tokens] in one call.

        Args:
            last: keep the activations of the last so many tokens only.
            inputs: handed to the model: a mask, positions, a cache.

        Raises:
            Stopped: ``stop`` was set.
        """
        kept: list[torch.Tensor] = []

        def see(_block: FeedForward, activations: torch.Tensor) -> None:
            if self.stop.is_set():
                raise Stopped
            whole = activations.reshape(*ids.shape, -1)
            kept.append(whole[:, -(last or 0) :].float().clone())

        cached = "past_key_values" in inputs
        with observe(self.blocks, see):
            output = self.model(input_ids=ids.to(self.device), use_cache=cached, logits_to_keep=1, **inputs)
        return ForwardPass(kept, output.logits[:, -1].float())


@contextmanager
def last_inputs(blocks: Sequence[FeedForward]) -> Iterator[dict[int, torch.Tensor]]:
    """Within the context the dict holds, by layer, what the block last read: [sequences, tokens, d_model]."""
    seen: dict[int, torch.Tensor] = {}

    def tap(layer: int) -> Callable[..., None]:
        return lambda _module, inputs: seen.__setitem__(layer, inputs[0])

    handles = [block.input_linears[0].register_forward_pre_hook(tap(block.layer)) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def importance(block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
    """``|a_j| n_j``: the norm of what neuron j adds to the block's output; float32 [..., d_ff]."""
    return activations.abs() * block.output_norms


def active(values: torch.Tensor, keep: float) -> torch.Tensor:
    """The share ``keep`` of the neurons with the largest importance, bool [..., d_ff]; none whose importance is 0."""
    count = max(1, round(keep * values.shape[-1]))
    top = values.topk(count, dim=-1, sorted=False).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, top, True) & (values > 0)


def plain_ids(lm: LoadedModel, text: str) -> list[int]:
    """Token ids of ``text`` alone: no chat template, nothing added before or after."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def first_token(lm: LoadedModel) -> int:
    """The token every sequence begins with, so that the outsize activations models have at position 0 fall on it."""
    tokenizer = lm.tokenizer
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, *lm.eos_ids)
    return next((token for token in candidates if isinstance(token, int)), 0)


def random_ids(lm: LoadedModel, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    """Tokens drawn evenly from the vocabulary, special ones left out: int64 ``shape``."""
    special = set(lm.tokenizer.all_special_ids)
    words = torch.tensor([token for token in range(len(lm.tokenizer)) if token not in special])
    return words[torch.randint(len(words), shape, generator=random)]


def whole_words(lm: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    """Which of ``ids`` int64 [sequences, tokens] are each a whole word of four letters or more: bool, same shape.

    A word begins with its tokenizer's space, and the next token does not go on with it.
    """

    def is_word(token: str, following: str) -> bool:
        goes_on = following[:1] not in _SPACES and following[:1].isalpha()
        return token[:1] in _SPACES and len(token) > 4 and token[1:].isalpha() and not goes_on

    rows = [[*lm.tokenizer.convert_ids_to_tokens(row), ""] for row in ids.tolist()]
    return torch.tensor([[is_word(*pair) for pair in pairwise(row)] for row in rows])


def pieces(lm: LoadedModel, text: str, most: int, length: int, least: int, shortest: int) -> list[list[int]]:
    """``text`` cut into equal pieces that follow one another: an even number of them, at most ``most``, of at most
    ``length`` tokens each. A short text gives ``least`` (even too) pieces, as long as they can be.

    Raises:
        UserError: the pieces would be shorter than ``shortest`` tokens.
    """
    ids = plain_ids(lm, text)
    count = max(least, min(most, len(ids) // length) // 2 * 2)
    piece = min(length, len(ids) // count)
    if piece < shortest:
        raise UserError(
            f"Your text has {len(ids)} tokens; at least {least * shortest} are needed, {least} pieces of {shortest}: "
            "give a longer text."
        )
    return [ids[start : start + piece] for start in range(0, count * piece, piece)]


def pieces_note(count: int, length: int) -> str:
    """What an interval over pieces of one text says, and what not."""
    return (
        f"Measured on one text cut into {count} pieces of {length} tokens: the intervals say how far its parts differ, "
        "not how far texts do"
    )


def cut_to(lm: LoadedModel, texts: Sequence[str], length: int, least: int) -> torch.Tensor:
    """The first ``length`` tokens of every text that has as many: int64 [texts, length].

    Raises:
        UserError: fewer than ``least`` texts are long enough.
    """
    rows = [ids[:length] for text in texts if len(ids := plain_ids(lm, text)) >= length]
    if len(rows) < least:
        raise UserError(
            f"{len(rows)} texts have {length} tokens or more; {least} are needed: give more or longer texts, or ask "
            "for fewer tokens."
        )
    return torch.tensor(rows)


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|A and B| / |A or B| of bool sets [..., d]: float64 [...]; two empty sets are equal, so 1."""
    either = (first | second).sum(axis=-1)
    both = (first & second).sum(axis=-1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def chance_jaccard(keep: float) -> float:
    """What two independent random sets that each hold the share ``keep`` of all neurons have, for many neurons."""
    return keep / (2 - keep)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the last axis, equal values sharing their mean rank: float64, same shape."""
    from scipy.stats import rankdata  # imported here: it takes about a second

    return rankdata(values, axis=-1) - 1


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis, float64 [...]; of ranks it is Spearman's. 0 where one is constant."""
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    spread = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.where(spread > 0, (first * second).sum(axis=-1) / np.where(spread > 0, spread, 1), 0.0)
