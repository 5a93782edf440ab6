"""From logits to the next token, and from tokens to text as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sampler = Callable[[torch.Tensor], int]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for bytes that do not make a character yet


def sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """Greedy at temperature 0; else nucleus sampling from float32 [vocabulary] logits, repeatable by ``seed``."""
    if temperature == 0:
        return most_likely
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: torch.Tensor) -> int:
        probabilities, tokens = torch.softmax(logits.cpu() / temperature, dim=-1).sort(descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        nucleus = probabilities.masked_fill(before >= top_p, 0)
        nucleus[0] = probabilities[0]  # never empty
        return int(tokens[torch.multinomial(nucleus, 1, generator=generator)])

    return draw


def most_likely(logits: torch.Tensor) -> int:
    """The token with the highest of ``logits`` float32 [vocabulary]."""
    # numpy looks at several at once: 9 us for 49,152 logits, which take torch 121, each in a loop of its own.
    return int(logits.numpy().argmax()) if logits.device.type == "cpu" else int(logits.argmax())


class TextStream:
    """Decodes a growing token list; characters whose bytes are not all there yet are held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """The characters that ``token`` completes."""
        self.tokens.append(token)
        whole = decode(self.tokenizer, self.tokens)
        if whole.endswith(_INCOMPLETE):
            return ""
        return self._advance(whole)

    def finish(self) -> str:
        """What was held back, as it is."""
        return self._advance(decode(self.tokenizer, self.tokens))

    def _advance(self, whole: str) -> str:
        new, self.text = whole[len(self.text) :], whole
        return new


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int], *, special: bool = False) -> str:
    """The text of ``tokens``; special tokens are shown only where ``special`` says so."""
    return cast(str, tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False))
