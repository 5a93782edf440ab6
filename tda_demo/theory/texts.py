"""The texts the experiments read: the project's own."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..calibration.documents import project_passages
from ..support.files import DATA

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
    return tuple(each.text for each in project_passages(language="en"))


def histories() -> tuple[Histories, ...]:
    """Sentences on different topics, each with its histories."""
    lines = (DATA / "histories.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Histories(**json.loads(line)) for line in lines)
