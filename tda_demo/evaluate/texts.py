"""Calibration and held-out texts, cut for scoring: what is read as the prompt, and what is scored after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ..calibration.sources import Source
from ..support.errors import UserError
from ..support.progress import Progress, Report, silent

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

PROMPT_TOKENS, SCORE_TOKENS = (
    96,
    64,
)  # of a text without a question, so that all are as long; scored ones of any at most
_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Equally long texts, int64 ``ids`` [texts, T]; the first ``prompt_tokens`` of each are read, the others scored."""

    ids: torch.Tensor
    prompt_tokens: int


def batches(
    lm: LoadedModel,
    source: Source,
    stage: str,
    most: int,
    *,
    held_out: bool = False,
    report: Report = silent,
) -> Iterator[ScoredBatch]:
    """At most ``most`` texts of ``source``, a question the prompt of its answer; telling ``report`` about ``stage``.

    Raises:
        UserError: no text is long enough.
    """
    read = source.texts(lm, held_out=held_out, longest=lm.context_length, report=report)
    cut = [(text.ids[: (text.begin or PROMPT_TOKENS) + SCORE_TOKENS], text.begin) for text in read.texts]
    scored = [(ids, begin or PROMPT_TOKENS) for ids, begin in cut if _is_long_enough(ids, begin)][:most]
    if not scored:
        raise UserError(f"{lm.name} cuts the calibration texts into fewer than {PROMPT_TOKENS} tokens.")
    done = 0
    for (_, prompt_tokens), group in groupby(scored, key=lambda text: (len(text[0]), text[1])):
        ids = [text for text, _ in group]
        for begin in range(0, len(ids), _AT_ONCE):
            report(Progress(stage, done, len(scored), read.unit))
            together = ids[begin : begin + _AT_ONCE]
            yield ScoredBatch(torch.tensor(together, device=lm.device), prompt_tokens)
            done += len(together)
    report(Progress(stage, done, len(scored), read.unit))


def _is_long_enough(ids: tuple[int, ...], begin: int) -> bool:
    """An answer of two tokens; a text without a question in full."""
    return len(ids) >= begin + 2 if begin else len(ids) == PROMPT_TOKENS + SCORE_TOKENS
