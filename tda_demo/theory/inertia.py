"""Claim 3, semantic-irrelevant inertia: what came before against the token itself.

The claim (arXiv 2406.12569, 2408.11393): which neurons fire for the current token is driven by the previous activations
of the sequence more than by the token's own meaning. The papers compare natural sentences with random tokens, each fed
in parallel and one by one.

Our reading, with active sets of the share ``keep`` of the neurons with the largest ``|a_j| n_j``:

* Swap, the claim taken literally: two prefixes and two last tokens give four endings. If the claim holds, the last
  token's sets are more alike where the prefix is shared and the token is not than the other way round. The token's own
  meaning is its identity here; the regression beside it puts cosine similarity of input embeddings in its place.
* Neighbours, the papers' 2 x 2: sets of consecutive tokens against those of tokens from different sequences. In a
  random sequence nothing but the shared prefix can make neighbours alike.
* Parallel against one by one: a causal model computes the same function either way, so what differs is rounding. It is
  measured, because a contrast between the two cannot be evidence for anything else.
* Drift: how much of a generated token's set the prompt's set covers, against another prompt's set. This is what a
  sequence-level method relies on.
* Echo: how much of later tokens' sets one inserted word changes, a word from another text or from the same one.

What falsifies it: sets that follow the token more than the prefix; neighbours in random sequences no more alike than
strangers; a prompt's set no better than another prompt's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..estimates import LEAST_CLUSTERS
from ..progress import Progress, Report, silent
from .drift import drift
from .findings import Finding
from .inertia_verdict import Measured, conclude
from .probes import echo, grid, swap
from .reading import Reader, Stopped, cut_to, first_token, pieces, pieces_note, random_ids, whole_words
from .settings import SHORTEST, InertiaSettings
from .texts import english_passages

if TYPE_CHECKING:
    from ..models import LoadedModel


def inertia(
    lm: LoadedModel,
    settings: InertiaSettings | None = None,
    texts: Sequence[str] | str | None = None,
    report: Report = silent,
    stop: threading.Event | None = None,
) -> Finding:
    """Measures claim 3 on ``texts`` (default: the project's own passages), or on one text, cut into pieces.

    Raises:
        UserError: too few texts are long enough, or the model's context is shorter than what is asked for.
    """
    settings, stop = settings or InertiaSettings(), stop or threading.Event()
    if settings.length + 1 + settings.tokens > lm.context_length:
        raise UserError(
            f"{settings.length + 1} tokens of prompt and {settings.tokens} generated ones are more than the "
            f"{lm.context_length:,} that {lm.name} takes: lower tokens or length."
        )
    natural, notes = _natural(lm, settings, texts)
    random = torch.Generator().manual_seed(settings.seed)
    natural, noise = (_opened(lm, each) for each in (natural, random_ids(lm, tuple(natural.shape), random)))
    place = natural.shape[1] // 3
    inserted = _insertions(lm, natural, random)
    reader = Reader(lm, stop)
    rows, length = natural.shape
    prompts = min(settings.prompts, rows)
    swaps, ways, echoes = rows * (length + 3), 2 * rows * length, rows * (3 * length + 2)
    done, total = 0, 2 * swaps + 2 * ways + echoes + prompts * settings.tokens

    def tick(tokens: int) -> None:
        nonlocal done
        done += tokens
        report(Progress("Inertia", done, total, "tokens"))

    report(Progress("Inertia", 0, total, "tokens"))
    measured = Measured(place=place)
    keep = settings.keep
    with suppress(Stopped):
        measured.natural_swap = swap(reader, natural, keep, stop, tick)
        measured.random_swap = swap(reader, noise, keep, stop, tick)
        measured.grid = grid(reader, natural, noise, keep, stop, tick)
        measured.echo = echo(reader, natural, inserted, place, keep, stop, tick)
    if not stop.is_set():
        measured.drift = drift(lm, natural[:prompts], settings.tokens, keep, settings.seed, stop, tick)
    finding = conclude(measured, lm.name, asdict(settings), complete=not stop.is_set())
    return replace(finding, notes=(*notes, *finding.notes))


def _natural(
    lm: LoadedModel, settings: InertiaSettings, texts: Sequence[str] | str | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The natural sequences without their first token, int64 [sequences, tokens], and what is to be said of them."""
    body = settings.length - 1
    if isinstance(texts, str):
        cut = pieces(lm, texts, settings.sequences, body, 2 * LEAST_CLUSTERS, shortest=SHORTEST - 1)
        return torch.tensor(cut), (pieces_note(len(cut), len(cut[0])),)
    return cut_to(lm, texts or english_passages(), body, settings.sequences)[: settings.sequences], ()


def _opened(lm: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full((len(ids), 1), first_token(lm)), ids], dim=1)


def _insertions(lm: LoadedModel, ids: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A word of the next text, and one of the same text, for every row of ``ids``: int64 [2, sequences].

    It is any token but the first where a text has no token that is a word.
    """
    words = whole_words(lm, ids)
    likely = torch.where(words.any(dim=1, keepdim=True), words, True).float()
    likely[:, 0] = 0
    others = ids.roll(-1, dims=0), likely.roll(-1, dims=0)
    drawn = [each.gather(1, weights.multinomial(1, generator=random)) for each, weights in (others, (ids, likely))]
    return torch.cat(drawn, dim=1).T
