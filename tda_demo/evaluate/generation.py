"""Texts written by both arms, measured against references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from ..decode.arm import Arm
from ..decode.choose import engine_for
from ..decode.text import Sampler, decode, sampler
from ..methods.policy import Policy
from ..support.errors import UserError
from .result import Generation

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

ARMS = ("dense", "sparse")
GREEDY = sampler(0.0, 1.0, 0)


def write(lm: LoadedModel, policy: Policy, prompt: str, max_new_tokens: int) -> tuple[str, str]:
    """The greedy answers of the dense and of the sparse arm to ``prompt``, each as the race would write it.

    Raises:
        UserError: see ``LoadedModel.prompt_ids``.
    """
    engine = engine_for(lm, policy)
    ids = lm.prompt_ids(prompt)
    prefill = engine.prefill(ids, policy)
    room = min(max_new_tokens, lm.context_length - len(ids))
    dense, sparse = (
        decode(lm.tokenizer, list(islice(tokens(arm, prefill.logits, lm.eos_ids), room)))
        for arm in (engine.dense_arm(prefill, room), engine.sparse_arm(prefill, room))
    )
    return dense, sparse


def tokens(arm: Arm, prompt_logits: torch.Tensor, eos_ids: frozenset[int], choose: Sampler = GREEDY) -> Iterator[int]:
    """What ``arm`` writes after its prompt, up to and without the end token; the first comes from ``prompt_logits``."""
    token = choose(prompt_logits)
    while token not in eos_ids:
        yield token
        token = choose(arm.step(token))


def compare(texts: Sequence[tuple[str, str]], references: Sequence[str], max_new_tokens: int) -> Generation:
    """ROUGE-L F1 (Lin 2004, as the rouge-score package computes it, without stemming) and exact match of both arms.

    A match is exact where the texts differ in nothing but case and white space.

    Raises:
        UserError: the rouge-score package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError("References are compared with rouge-score: pip install rouge-score.") from error

    scorer = RougeScorer(["rougeL"])
    by_arm = dict(zip(ARMS, zip(*texts, strict=True), strict=True))
    return Generation(
        documents=len(references),
        max_new_tokens=max_new_tokens,
        rouge_l={
            arm: fmean(
                scorer.score(reference, text)["rougeL"].fmeasure
                for text, reference in zip(written, references, strict=True)
            )
            for arm, written in by_arm.items()
        },
        exact_match={
            arm: fmean(_plain(text) == _plain(reference) for text, reference in zip(written, references, strict=True))
            for arm, written in by_arm.items()
        },
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
