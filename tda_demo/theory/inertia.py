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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..progress import Progress, Report, silent
from .drift import drift
from .findings import Finding
from .inertia_verdict import Measured, conclude
from .probes import echo, grid, swap
from .reading import Reader, check_seed, cut_to, first_token, random_ids
from .statistics import LEAST_CLUSTERS
from .texts import english_passages

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True)
class InertiaSettings:
    """``sequences`` texts of ``length`` tokens of each kind (natural, random); ``tokens`` generated after each of
    ``prompts`` prompts; ``keep``, the share of neurons in an active set."""

    sequences: int = 16
    length: int = 40
    prompts: int = 4
    tokens: int = 512
    keep: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        if self.sequences < 2 * LEAST_CLUSTERS:
            raise UserError(f"sequences is {self.sequences}; pairs of them need at least {2 * LEAST_CLUSTERS}.")
        if self.length < 8:
            raise UserError(f"length is {self.length}; it must be at least 8 tokens.")
        if not LEAST_CLUSTERS <= self.prompts <= self.sequences:
            raise UserError(f"prompts is {self.prompts}; it must be from {LEAST_CLUSTERS} to sequences.")
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}; it must be at least 1.")
        if not 0 < self.keep < 1:
            raise UserError(f"keep is {self.keep}; it must be a share between 0 and 1.")
        check_seed(self.seed)


def inertia(
    lm: LoadedModel,
    settings: InertiaSettings | None = None,
    texts: Sequence[str] | None = None,
    report: Report = silent,
    stop: threading.Event | None = None,
) -> Finding:
    """Measures claim 3 on ``texts`` (default: the project's own passages).

    Raises:
        UserError: too few texts are long enough, or the model's context is shorter than what is asked for.
    """
    settings, stop = settings or InertiaSettings(), stop or threading.Event()
    if settings.length + 1 + settings.tokens > lm.context_length:
        raise UserError(
            f"{settings.length + 1} tokens of prompt and {settings.tokens} generated ones are more than the "
            f"{lm.context_length:,} that {lm.name} takes: lower tokens or length."
        )
    body = settings.length - 1
    natural = cut_to(lm, texts or english_passages(), body, settings.sequences)[: settings.sequences]
    random = torch.Generator().manual_seed(settings.seed)
    natural, noise = (_opened(lm, each) for each in (natural, random_ids(lm, tuple(natural.shape), random)))
    place = settings.length // 3
    inserted = _insertions(natural, random)
    reader = Reader(lm)
    done, total = 0, 1 + 4 + 3 + settings.prompts * settings.tokens

    def tick() -> None:
        nonlocal done
        done += 1
        report(Progress("Inertia", done, total, "passes"))

    report(Progress("Inertia", 0, total, "passes"))
    measured = Measured(place=place)
    keep = settings.keep
    measured.natural_swap = swap(reader, natural, keep, stop, tick)
    measured.random_swap = swap(reader, noise, keep, stop, tick)
    if not stop.is_set():
        measured.grid = grid(reader, natural, noise, keep, stop)
        tick()
        measured.echo = echo(reader, natural, inserted, place, keep, stop, tick)
    if not stop.is_set():
        measured.drift = drift(lm, natural[: settings.prompts], settings.tokens, keep, settings.seed, stop, tick)
    return conclude(measured, lm.name, asdict(settings), complete=not stop.is_set())


def _opened(lm: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full((len(ids), 1), first_token(lm)), ids], dim=1)


def _insertions(ids: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A token of the next text, and one of the same text, for every row of ``ids``: int64 [2, sequences]."""
    places = torch.randint(1, ids.shape[1], (2, len(ids), 1), generator=random)
    return torch.stack([ids.roll(-1, dims=0).gather(1, places[0])[:, 0], ids.gather(1, places[1])[:, 0]])
