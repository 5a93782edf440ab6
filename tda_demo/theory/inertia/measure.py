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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from ...methods.settings import Range
from ...stats.estimates import LEAST_CLUSTERS
from ...support.errors import UserError
from ...support.lazy import torch
from ...support.progress import Progress, Report, silent
from ..experiment import Claim, Experiment, NumberInput, keep_setting, number_setting, seed_setting
from ..findings import Finding
from ..reading import Reader, Stopped, cut_to, first_token, pieces, pieces_note, random_ids, whole_words
from ..texts import english_passages
from .probes import drift, echo, neighbours, swap
from .verdict import Measurements, conclude

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


_SHORTEST = 8  # tokens of a sequence, so that there is something before and after the places looked at


@dataclass(frozen=True)
class Inertia(Experiment):
    """``sequences`` texts of ``length`` tokens of each kind (natural, random); ``tokens`` generated after each of
    ``prompts`` prompts; ``keep``, the share of neurons in an active set."""

    name: ClassVar[str] = "inertia"
    title: ClassVar[str] = "Inertia"
    summary: ClassVar[str] = "what came before against the token itself"
    claim: ClassVar[Claim] = Claim(
        "Which neurons fire for a token is driven by the previous activations of the sequence. The token's own meaning "
        "matters less, so that activity goes on by inertia.",
        "Active sets follow a shared prefix more than a shared token, neighbours in random sequences are alike, and a "
        "prompt's active set keeps covering what is generated after it.",
    )
    duration: ClassVar[str] = "under a minute on two cores"
    text_use: ClassVar[str] = (
        "A text is cut into pieces, which take the place of the natural sequences; 56 tokens or more."
    )

    sequences: int = number_setting(
        16,
        "natural ones, and as many random ones",
        Range(2 * LEAST_CLUSTERS, inf),
        NumberInput("Sequences", 8, 24, 2),
    )
    length: int = number_setting(32, "tokens of each", Range(_SHORTEST, inf), NumberInput("Tokens of each", 8, 96))
    prompts: int = number_setting(
        8, "texts to go on with", Range(LEAST_CLUSTERS, inf), NumberInput("Texts to go on with", 4, 8)
    )
    tokens: int = number_setting(
        512, "generated after each prompt", Range(1, inf), NumberInput("Tokens generated", 1, 512)
    )
    keep: float = keep_setting()
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequences % 2:
            raise UserError(
                f"sequences is {self.sequences}; it must be an even number, since they are compared in pairs."
            )
        if self.prompts > self.sequences:
            raise UserError(f"prompts is {self.prompts}; it must be at most sequences, {self.sequences}.")

    def run(
        self,
        lm: LoadedModel,
        text: Sequence[str] | str | None = None,
        report: Report = silent,
        stop: threading.Event | None = None,
        on_point: Callable[[Any], None] | None = None,
    ) -> Finding:
        """Measures claim 3 on texts (default: the project's own passages), or on one text, cut into pieces.

        Raises:
            UserError: too few texts are long enough, or the model's context is shorter than what is asked for.
        """
        if self.length + 1 + self.tokens > lm.context_length:
            raise UserError(
                f"{self.length + 1} tokens of prompt and {self.tokens} generated ones are more than the "
                f"{lm.context_length:,} that {lm.name} takes: lower tokens or length."
            )
        stop = stop or threading.Event()
        natural, notes = _natural(lm, self, text)
        measured = _measure(lm, natural, self, report, stop)
        finding = conclude(measured, lm.name, self, complete=not stop.is_set())
        return replace(finding, notes=(*notes, *finding.notes))


def _measure(
    lm: LoadedModel, natural: torch.Tensor, settings: Inertia, report: Report, stop: threading.Event
) -> Measurements:
    """Every probe on ``natural`` int64 [sequences, tokens] and on as many random tokens."""
    random = torch.Generator().manual_seed(settings.seed)
    natural, noise = (_with_first_token(lm, ids) for ids in (natural, random_ids(lm, tuple(natural.shape), random)))
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
    measured = Measurements(place=place)
    keep = settings.keep
    with suppress(Stopped):
        measured.natural_swap = swap(reader, natural, keep, stop, tick)
        measured.random_swap = swap(reader, noise, keep, stop, tick)
        measured.neighbours = neighbours(reader, natural, noise, keep, stop, tick)
        measured.echo = echo(reader, natural, inserted, place, keep, stop, tick)
    if not stop.is_set():
        measured.drift = drift(lm, natural[:prompts], settings.tokens, keep, settings.seed, stop, tick)
    return measured


def _natural(
    lm: LoadedModel, settings: Inertia, texts: Sequence[str] | str | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The natural sequences without their first token, int64 [sequences, tokens], and what is to be said of them."""
    body = settings.length - 1
    if isinstance(texts, str):
        cut = pieces(lm, texts, settings.sequences, body, 2 * LEAST_CLUSTERS, shortest=_SHORTEST - 1)
        return torch.tensor(cut), (pieces_note(len(cut), len(cut[0])),)
    return cut_to(lm, texts or english_passages(), body, settings.sequences)[: settings.sequences], ()


def _with_first_token(lm: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full((len(ids), 1), first_token(lm)), ids], dim=1)


def _insertions(lm: LoadedModel, ids: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A word of the next text, and one of the same text, for every row of ``ids``: int64 [2, sequences].

    It is any token but the first where a text has no token that is a word.
    """
    words = whole_words(lm, ids)
    likely = torch.where(words.any(dim=1, keepdim=True), words, True).float()
    likely[:, 0] = 0
    others = ids.roll(-1, dims=0), likely.roll(-1, dims=0)
    words_drawn = [
        tokens.gather(1, weights.multinomial(1, generator=random)) for tokens, weights in (others, (ids, likely))
    ]
    return torch.cat(words_drawn, dim=1).T
