"""What a method is calibrated on: the model's own answers for races and generation, passages for plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..support.lazy import torch
from ..support.progress import Report, silent
from .answers import answers, questions_sha256
from .documents import Passages, calibration_passages, held_out_passages

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_FEW, _FEW_TOKENS = 3, 128  # passages, and tokens of each, that a large model reads in seconds


@dataclass(frozen=True)
class Text:
    """Token ``ids``; those from ``begin`` on count, the ones before are read as their context."""

    ids: tuple[int, ...]
    begin: int = 0


@dataclass(frozen=True)
class Source:
    """Texts under a ``name``, which is part of the names of tables made of them.

    ``unit`` is what progress counts; ``read(lm, held_out, report)`` gives the texts; ``version()`` changes with what
    they are made of.
    """

    name: str
    unit: str
    read: Callable[[LoadedModel, bool, Report], list[Text]]
    version: Callable[[], str]

    def texts(self, lm: LoadedModel, *, held_out: bool = False, longest: int = 1024, report: Report = silent) -> Texts:
        """Those to calibrate on, or those held out, in the tokens of ``lm``, ``longest`` of each at most."""
        cut = min(longest, lm.context_length)
        texts = [Text(text.ids[:cut], text.begin) for text in self.read(lm, held_out, report)]
        return Texts(self.name, self.unit, tuple(text for text in texts if text.begin < len(text.ids)))


@dataclass(frozen=True)
class Texts:
    """Texts in one model's tokens."""

    name: str
    unit: str
    texts: tuple[Text, ...]

    @property
    def tokens(self) -> int:
        """How many count."""
        return sum(len(text.ids) - text.begin for text in self.texts)

    @property
    def sha256(self) -> str:
        """Of the tokens, in hex."""
        return hashlib.sha256(repr([(text.ids, text.begin) for text in self.texts]).encode()).hexdigest()


def from_passages(passages: Passages) -> Source:
    """Passages as a source, whole."""

    def read(lm: LoadedModel, _held_out: bool, _report: Report) -> list[Text]:
        return [Text(tuple(lm.tokenizer(text)["input_ids"])) for text in passages.texts]

    return Source(passages.name, "passages", read, lambda: passages.sha256)


def _passages(lm: LoadedModel, held_out: bool, report: Report) -> list[Text]:
    return from_passages(held_out_passages() if held_out else calibration_passages()).read(lm, held_out, report)


def _few_passages(lm: LoadedModel, held_out: bool, report: Report) -> list[Text]:
    return [Text(text.ids[:_FEW_TOKENS]) for text in _passages(lm, held_out, report)[:_FEW]]


def _answers(lm: LoadedModel, held_out: bool, report: Report) -> list[Text]:
    return [
        Text((*answer.question, *answer.answer), len(answer.question))
        for answer in answers(lm, held_out=held_out, report=report)
    ]


ANSWERS = Source("answers", "answers", _answers, questions_sha256)
FEW_PASSAGES = Source("few-passages", "passages", _few_passages, lambda: calibration_passages().sha256)
PASSAGES = Source("passages", "passages", _passages, lambda: calibration_passages().sha256)


def inputs(text: Text, lm: LoadedModel) -> torch.Tensor:
    """``text`` as int64 [1, T] where ``lm`` takes its tokens."""
    return torch.tensor([text.ids], device=lm.device)
