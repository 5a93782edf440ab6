"""How long a prompt's active sets keep fitting the text generated after it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ...calibration.cett import score, strengths
from ...methods.policy import SequencePolicy
from ...model.feedforward import FeedForward
from ...support.lazy import torch
from ..reading import active

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...model.loading import LoadedModel

_PER_RANGE = 16  # looking at a token takes as long as computing it


@dataclass(frozen=True, eq=False)
class Drift:
    """Share of a generated token's active set that is in its prompt's set, ``own``, and in another prompt's, ``other``:
    float64 [prompts, places, layers]; ``places`` int [places], which tokens were looked at, from 0."""

    places: np.ndarray
    own: np.ndarray
    other: np.ndarray


def ranges(tokens: int) -> list[range]:
    """Token 1, token 2, tokens 3 to 4, 5 to 8 and so on (as indices from 0) as far as ``tokens`` go, the last cut."""
    ends = [0, *(2**power for power in range((tokens - 1).bit_length())), tokens]
    return [range(start, end) for start, end in pairwise(ends)]


def places(tokens: int) -> np.ndarray:
    """The tokens that are looked at: evenly spread, at most 16 in each of ``ranges``; int, ascending."""
    spread = [np.linspace(span.start, span.stop - 1, min(len(span), _PER_RANGE)) for span in ranges(tokens)]
    return np.concatenate(spread).astype(int)


def drift(
    lm: LoadedModel,
    prompts: torch.Tensor,
    tokens: int,
    keep: float,
    seed: int,
    stop: threading.Event,
    tick: Callable[[int], None],
) -> Drift | None:
    """Generates ``tokens`` tokens after every prompt, int64 [prompts, length], on the engine races use.

    A prompt's set is the share ``keep`` of the neurons with the highest TDA score over it (``cett.score``, times the
    output norm). Tokens are drawn at temperature 1 from the whole vocabulary: greedy text of small models repeats
    itself, which would be taken for inertia. The text goes on past an end token, so that every prompt has all tokens.
    Stop leaves out the prompt it interrupts; None where no prompt was finished.
    """
    from ...decode.choose import engine_for

    engine = engine_for(lm)
    selector = _TopShare(keep)
    prefills = [engine.prefill(row.tolist(), selector) for row in prompts]
    norms = torch.stack([block.output_norms for block in lm.blocks])
    masks = torch.zeros(len(prompts), *norms.shape, dtype=torch.bool, device=norms.device)
    for mask, prefill in zip(masks, prefills, strict=True):
        for layer, indices in enumerate(prefill.active.indices):
            mask[layer, indices] = True
    random = torch.Generator(lm.device).manual_seed(seed)
    looked_at = places(tokens)
    found = []
    for index, prefill in enumerate(prefills):
        arm = engine.dense_arm(prefill, tokens)
        logits = prefill.logits
        covered = []
        for place in range(tokens):
            if stop.is_set():
                return _drift(looked_at, found)
            waits = torch.empty_like(logits).exponential_(generator=random)
            logits = arm.step(int((logits - waits.log()).argmax()))  # a draw from softmax(logits), without summing it
            if place in looked_at:
                sets = active(torch.cat(arm.activations()).float().abs() * norms, keep)
                both = torch.stack([(sets & masks[prompt]).sum(dim=-1) for prompt in (index, index - 1)])
                covered.append((both / sets.sum(dim=-1).clamp_min(1)).cpu().numpy())
            tick(1)
        found.append(np.stack(covered, axis=1))
    return _drift(looked_at, found)


def _drift(looked_at: np.ndarray, found: list[np.ndarray]) -> Drift | None:
    return Drift(looked_at, *np.stack(found, axis=1).astype(np.float64)) if found else None


class _TopShare(SequencePolicy):
    """Keeps the same share of neurons in every layer."""

    def __init__(self, keep: float) -> None:
        self.keep = keep

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return active(score(strengths(activations, block.output_norms)), self.keep)
