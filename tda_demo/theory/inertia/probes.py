"""The measurements behind claim 3. Every probe returns arrays whose first axis is the cluster that is resampled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from ...calibration.cett import score, strengths
from ...calibration.priors import strength_prior
from ...calibration.sources import ANSWERS
from ...methods.sequence import SequencePolicy
from ...model.feedforward import FeedForward
from ...support.lazy import nn, torch
from ..reading import Reader, active, importance, jaccard

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...model.loading import LoadedModel


Tick = Callable[[int], None]  # is told how many tokens were read
_PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))  # of the endings Pv, Pw, Qv, Qw: prefix, token, neither
_PER_RANGE = 16  # tokens looked at in a range: looking at one takes as long as computing it


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Neighbouring tokens, natural or random, fed in parallel or one by one.

    ``cosine`` and ``sets`` (Jaccard): float64 [sequences, 2 kinds of tokens, 2 ways of feeding, layers], tokens t and
    t + 1 of one sequence; ``apart``: Jaccard of token t and token t + 1 of another sequence, fed in parallel,
    [sequences, 2 kinds, layers]. ``difference``: of one-by-one activations from parallel ones, norm over norm,
    [sequences, 2 kinds, layers]; ``changed``: the share of active-set members that differ.
    """

    cosine: np.ndarray
    sets: np.ndarray
    apart: np.ndarray
    difference: np.ndarray
    changed: np.ndarray


def neighbours(
    reader: Reader, natural: torch.Tensor, noise: torch.Tensor, keep: float, stop: threading.Event, tick: Tick
) -> Neighbours | None:
    """Reads ``natural`` and ``noise``, int64 [sequences, tokens] each, both ways; the first token is left out."""
    from transformers import DynamicCache

    count = len(natural)
    halves = []
    for kind in (natural, noise):  # twice half as many are read in half the time: fewer new pages of memory
        if stop.is_set():
            return None
        halves.append(reader.read(kind).activations)
        tick(kind.numel())
    parallel = [torch.cat(layer) for layer in zip(*halves, strict=True)]
    ids = torch.cat([natural, noise])
    cache = DynamicCache()
    steps: list[list[torch.Tensor]] = []
    for position in range(ids.shape[1]):
        if stop.is_set():
            return None
        steps.append(reader.read(ids[:, position : position + 1], past_key_values=cache).activations)
        tick(len(ids))
    layers: list[tuple[np.ndarray, ...]] = []
    for layer, block in enumerate(reader.blocks):
        if stop.is_set():
            return None
        ways = [parallel[layer][:, 1:], torch.cat([step[layer] for step in steps], dim=1)[:, 1:]]
        sets = [active(importance(block, values), keep).cpu().numpy() for values in ways]
        cosine = [
            torch.cosine_similarity(values[:, 1:], values[:, :-1], dim=-1).mean(dim=1).cpu().numpy() for values in ways
        ]
        near = [jaccard(values[:, 1:], values[:, :-1]).mean(axis=1) for values in sets]
        other = np.concatenate([np.roll(sets[0][:count], 1, axis=0), np.roll(sets[0][count:], 1, axis=0)])
        apart = jaccard(sets[0][:, 1:], other[:, :-1]).mean(axis=1)
        gap = (ways[1] - ways[0]).norm(dim=(1, 2)) / ways[0].norm(dim=(1, 2)).clamp_min(1e-30)
        moved = (sets[0] & ~sets[1]).sum(axis=(1, 2)) / np.maximum(sets[0].sum(axis=(1, 2)), 1)
        layers.append((np.stack(cosine, 1), np.stack(near, 1), apart, gap.cpu().numpy(), moved))

    def by_kind(values: tuple[np.ndarray, ...]) -> np.ndarray:
        whole = np.stack(values, axis=-1).astype(np.float64)
        return np.stack([whole[:count], whole[count:]], axis=1)

    return Neighbours(*(by_kind(values) for values in zip(*layers, strict=True)))


@dataclass(frozen=True, eq=False)
class Swap:
    """Two prefixes, two last tokens, all four put together; the cluster is the pair of sequences.

    ``overlap`` float64 [pairs, 3, layers]: Jaccard of the last token's sets where the prefix is shared, where the token
    is, and where neither is. ``responses`` [pairs, rows, layers] are all overlaps one by one, ``predictors`` [pairs,
    rows, 2] say for each whether the prefix is shared and how alike the tokens' input embeddings are (cosine).
    """

    overlap: np.ndarray
    responses: np.ndarray
    predictors: np.ndarray


def swap(reader: Reader, ids: torch.Tensor, keep: float, stop: threading.Event, tick: Tick) -> Swap | None:
    """Swaps tokens between neighbouring rows of ``ids`` int64 [2 pairs, tokens], halfway and at the end.

    A prefix is read once: it goes on with either token, and then to the end.
    """
    from transformers import DynamicCache

    embeddings = cast(nn.Embedding, reader.model.get_input_embeddings()).weight.detach().float()
    table = embeddings - embeddings.mean(dim=0)
    first, second = ids[0::2], ids[1::2]
    responses, predictors = [], []
    cache, known = DynamicCache(), 0
    for length in (ids.shape[1] // 2, ids.shape[1] - 1):
        if stop.is_set():
            return None
        v, w = _last_tokens(first, second, length)
        prefixes = torch.cat([first[:, known:length], second[:, known:length]])
        reader.read(prefixes, last=1, past_key_values=cache)
        known = length
        read = []
        for token in (v, w):
            read.append(reader.read(torch.cat([token, token])[:, None], past_key_values=cache).activations)
            cache.crop(-1)
        tick(prefixes.numel() + 2 * len(prefixes))
        overlaps = []
        for layer, block in enumerate(reader.blocks):
            after_v, after_w = (active(importance(block, values[layer][:, 0]), keep).cpu().numpy() for values in read)
            sets = [masks[half : half + len(first)] for half in (0, len(first)) for masks in (after_v, after_w)]
            overlaps.append(np.stack([jaccard(sets[a], sets[b]) for a, b in _PAIRS], axis=1))
        responses.append(np.stack(overlaps, axis=2))
        alike = torch.cosine_similarity(table[v.to(table.device)], table[w.to(table.device)], dim=-1).cpu().numpy()
        shared = np.broadcast_to([1.0, 1, 0, 0, 0, 0], (len(alike), 6))
        meaning = np.stack([alike, alike, np.ones_like(alike), np.ones_like(alike), alike, alike], axis=1)
        predictors.append(np.stack([shared, meaning], axis=2))
    kinds = np.mean(responses, axis=0).reshape(len(first), 3, 2, -1).mean(axis=2)
    return Swap(kinds, np.concatenate(responses, axis=1), np.concatenate(predictors, axis=1))


def _last_tokens(first: torch.Tensor, second: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per pair the tokens both rows have at ``length``; where they are equal, the last position before it where they
    differ, so that a swap always changes something."""
    positions = torch.where(first[:, 1 : length + 1] != second[:, 1 : length + 1], torch.arange(1, length + 1), 0).amax(
        1
    )
    return first.gather(1, positions[:, None])[:, 0], second.gather(1, positions[:, None])[:, 0]


def echo(
    reader: Reader,
    ids: torch.Tensor,
    inserted: torch.Tensor,
    place: int,
    keep: float,
    stop: threading.Event,
    tick: Tick,
) -> np.ndarray | None:
    """What one inserted token changes later: 1 - Jaccard of the same token's sets with and without it.

    Args:
        ids: int64 [sequences, tokens].
        inserted: the tokens to insert at ``place``, int64 [kinds, sequences].

    Returns:
        float64 [sequences, kinds, tokens after ``place``, layers].
    """
    after = ids.shape[1] - place
    plain = reader.read(ids, last=after).activations
    tick(ids.numel())
    sets = [active(importance(block, a), keep).cpu().numpy() for block, a in zip(reader.blocks, plain, strict=True)]
    kinds = []
    for tokens in inserted:
        if stop.is_set():
            return None
        longer = torch.cat([ids[:, :place], tokens[:, None], ids[:, place:]], dim=1)
        changed = reader.read(longer, last=after).activations
        tick(longer.numel())
        overlap = [
            jaccard(before, active(importance(block, a), keep).cpu().numpy())
            for before, block, a in zip(sets, reader.blocks, changed, strict=True)
        ]
        kinds.append(1 - np.stack(overlap, axis=-1))
    return np.stack(kinds, axis=1)


@dataclass(frozen=True, eq=False)
class Drift:
    """Share of a generated token's active set that is in its prompt's set, ``own``, in another prompt's, ``other``, and
    in one chosen from answers to questions of which it is none, ``prior``: float64 [prompts, places, layers].

    ``places`` int [places] are the tokens that were looked at, from 0.
    """

    places: np.ndarray
    own: np.ndarray
    other: np.ndarray
    prior: np.ndarray


def ranges(tokens: int) -> list[range]:
    """Token 1, token 2, tokens 3 to 4, 5 to 8 and so on (as indices from 0) as far as ``tokens`` go, the last cut."""
    ends = [0, *(2**power for power in range((tokens - 1).bit_length())), tokens]
    return [range(start, end) for start, end in pairwise(ends)]


def drift_positions(tokens: int) -> np.ndarray:
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
    tick: Tick,
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
    by_prior = active(torch.stack(strength_prior(lm, ANSWERS, weighted=True)), keep)
    masks = torch.zeros(len(prompts), *norms.shape, dtype=torch.bool, device=norms.device)
    for mask, prefill in zip(masks, prefills, strict=True):
        for layer, indices in enumerate(prefill.active.indices):
            mask[layer, indices] = True
    random = torch.Generator(lm.device).manual_seed(seed)
    looked_at = drift_positions(tokens)
    shares = []
    for index, prefill in enumerate(prefills):
        arm = engine.dense_arm(prefill, tokens)
        logits = prefill.logits
        covered = []
        for place in range(tokens):
            if stop.is_set():
                return _drift(looked_at, shares)
            waits = torch.empty_like(logits).exponential_(generator=random)
            logits = arm.step(int((logits - waits.log()).argmax()))  # a draw from softmax(logits), without summing it
            if place in looked_at:
                sets = active(torch.cat(arm.activations()).float().abs() * norms, keep)
                covering = masks[index], masks[index - 1], by_prior
                both = torch.stack([(sets & mask).sum(dim=-1) for mask in covering])
                covered.append((both / sets.sum(dim=-1).clamp_min(1)).cpu().numpy())
            tick(1)
        shares.append(np.stack(covered, axis=1))
    return _drift(looked_at, shares)


def _drift(looked_at: np.ndarray, shares: list[np.ndarray]) -> Drift | None:
    return Drift(looked_at, *np.stack(shares, axis=1).astype(np.float64)) if shares else None


class _TopShare(SequencePolicy):
    """Keeps the same share of neurons in every layer."""

    def __init__(self, keep: float) -> None:
        self.keep = keep

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return active(score(strengths(activations, block.output_norms)), self.keep)
