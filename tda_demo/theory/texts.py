"""The texts the experiments read: the project's own, and synthetic ones for the training run.

The synthetic text is of a small grammar with things to learn near by and far back. A passage has a topic, and a
sentence is determiner, adjective, noun, verb, determiner, noun, stop. Nine words in ten are of the passage's topic; a
verb is of its noun's third of the verbs; the subject of every second sentence is the noun that ended the one before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..calibration.documents import project_passages
from ..support.files import DATA
from ..support.lazy import torch

SENTENCES = 16  # in histories.jsonl


@dataclass(frozen=True)
class Histories:
    """A ``sentence`` and what may stand before it: ``paraphrase`` and ``other_language`` say what ``same_topic`` says,
    in other words and in French or German."""

    sentence: str
    same_topic: str
    paraphrase: str
    other_language: str


def english_passages() -> tuple[str, ...]:
    """The project's English passages, code left out: nothing is calibrated here, so none is held out."""
    return tuple(document.text for document in project_passages(language="en"))


def histories() -> tuple[Histories, ...]:
    """Sentences on different topics, each with its histories."""
    lines = (DATA / "histories.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Histories(**json.loads(line)) for line in lines)


_TOPICS, _PER_TOPIC, _DETERMINERS = 8, 6, 4
_STOP = 0
_ADJECTIVE = 1 + _DETERMINERS
_NOUN = _ADJECTIVE + _TOPICS * _PER_TOPIC
_VERB = _NOUN + _TOPICS * _PER_TOPIC
VOCABULARY = _VERB + _TOPICS * _PER_TOPIC


def grammar_passages(count: int, length: int, random: torch.Generator) -> torch.Tensor:
    """Random passages, int64 [count, length]."""
    topic = torch.randint(_TOPICS, (count,), generator=random)

    def choose(words: int) -> torch.Tensor:
        return torch.randint(words, (count,), generator=random)

    def of_topic(word: torch.Tensor) -> torch.Tensor:
        stray = torch.rand(count, generator=random) < 0.1
        return torch.where(stray, choose(_TOPICS), topic) * _PER_TOPIC + word

    columns: list[torch.Tensor] = []
    last = of_topic(choose(_PER_TOPIC))
    while len(columns) < length:
        repeats = len(columns) // 7 % 2 == 1
        subject = last if repeats else of_topic(choose(_PER_TOPIC))
        verb = of_topic(subject % 3 * 2 + choose(2))
        last = of_topic(choose(_PER_TOPIC))
        columns += [
            1 + choose(_DETERMINERS),
            _ADJECTIVE + of_topic(choose(_PER_TOPIC)),
            _NOUN + subject,
            _VERB + verb,
            1 + choose(_DETERMINERS),
            _NOUN + last,
            torch.full((count,), _STOP),
        ]
    return torch.stack(columns[:length], dim=1)
