"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Callable

import torch

Sampler = Callable[[torch.Tensor], int]


def sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """Greedy at temperature 0; else nucleus sampling from float32 [vocabulary] logits, repeatable by ``seed``."""
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: torch.Tensor) -> int:
        probabilities, tokens = torch.softmax(logits.cpu() / temperature, dim=-1).sort(descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        nucleus = probabilities.masked_fill(before >= top_p, 0)
        nucleus[0] = probabilities[0]  # never empty
        return int(tokens[torch.multinomial(nucleus, 1, generator=generator)])

    return draw
