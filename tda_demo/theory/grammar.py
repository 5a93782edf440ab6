"""Synthetic text for the training run: a small grammar with things to learn near by and far back.

A passage has a topic, and a sentence is determiner, adjective, noun, verb, determiner, noun, stop. Nine words in ten
are of the passage's topic; a verb is of its noun's third of the verbs; the subject of every second sentence is the noun
that ended the one before.
"""

from __future__ import annotations

from ..support.lazy import torch

_TOPICS, _PER_TOPIC, _DETERMINERS = 8, 6, 4
_STOP = 0
_ADJECTIVE = 1 + _DETERMINERS
_NOUN = _ADJECTIVE + _TOPICS * _PER_TOPIC
_VERB = _NOUN + _TOPICS * _PER_TOPIC
VOCABULARY = _VERB + _TOPICS * _PER_TOPIC


def passages(count: int, length: int, random: torch.Generator) -> torch.Tensor:
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
