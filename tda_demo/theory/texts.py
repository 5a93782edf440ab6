"""The texts the experiments read: the project's own."""

from __future__ import annotations

import json

from ..calibrate import PASSAGES


def english_passages() -> tuple[str, ...]:
    """The project's English passages, code left out: nothing is calibrated here, so none is held out."""
    lines = [json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    return tuple(line["text"] for line in lines if line["language"] == "en")
