"""A race kept as JSON: its events in order, so that it can be shown again without a model, and what it was run on.

What takes room and no page shows is left out: which neurons were active, and what fired under a rival.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..stats.metrics import Speedup
from .events import Ended, Event, Finished, Judging, Priced, PromptRead, Stepped
from .result import ArmResult, FirstEnd, MethodResult, RaceQuality, RaceResult


@dataclass(frozen=True)
class Recording:
    """``events`` of a race on ``prompt`` of at most ``max_new_tokens``, run on ``date``.

    ``titles`` is what the arms of the methods are called, ``d_ff`` the width of every layer and ``mlp_bytes`` what a
    dense step reads of the MLP weights.
    """

    prompt: str
    titles: list[str]
    max_new_tokens: int
    date: str
    d_ff: list[int]
    mlp_bytes: float
    events: list[Event]

    @property
    def result(self) -> RaceResult:
        return next(event.result for event in self.events if isinstance(event, Finished))

    def text(self) -> str:
        """What a file holds: the facts, then an event a line."""
        facts = {name: value for name, value in vars(self).items() if name != "events"}
        lines = [json.dumps(_plain(event), ensure_ascii=False, allow_nan=False) for event in self.events]
        return json.dumps(facts, ensure_ascii=False)[:-1] + ', "events": [\n' + ",\n".join(lines) + "\n]}\n"

    @classmethod
    def of(cls, text: str) -> Recording:
        """The recording that a file holds."""
        told = json.loads(text)
        return cls(**{**told, "events": [_event(*event) for event in told["events"]]})


def _plain(event: Event) -> list[Any]:
    """The event's name and its fields as plain types."""
    match event:
        case PromptRead():
            return ["PromptRead", _plain_prompt(event)]
        case Stepped():
            ms = None if event.ms is None else round(event.ms, 3)
            fired = event.fired.tolist() if event.arm == "sparse" and event.fired is not None else None
            return ["Stepped", [event.arm, event.index, event.text, ms, event.weight_bytes, fired]]
        case Priced():
            return ["Priced", [event.arm, list(event.agrees), [round(kl, 5) for kl in event.kl]]]
        case Finished(result):
            return ["Finished", asdict(result)]
        case _:
            return [type(event).__name__, asdict(event)]


def _plain_prompt(read: PromptRead) -> dict[str, Any]:
    fields = {name: value for name, value in vars(read).items() if name not in ("active", "fired", "rival", "scores")}
    rival = None if read.rival is None else _plain_prompt(read.rival)
    return {**fields, "fired": read.fired.tolist(), "rival": rival}


def _event(name: str, fields: Any) -> Event:
    match name:
        case "PromptRead":
            return _prompt(fields)
        case "Stepped":
            arm, index, text, ms, weight_bytes, fired = fields
            return Stepped(arm, index, text, ms, weight_bytes, None if fired is None else np.array(fired))
        case "Priced":
            return Priced(*fields)
        case "Finished":
            return Finished(_result(fields))
        case "Ended":
            return Ended(**fields)
    return Judging()


def _prompt(fields: dict[str, Any]) -> PromptRead:
    rival = None if fields["rival"] is None else _prompt(fields["rival"])
    made = {"active": None, "fired": np.array(fields["fired"]), "tokens": tuple(fields["tokens"]), "rival": rival}
    return PromptRead(**{**fields, **made})


def _result(fields: dict[str, Any]) -> RaceResult:
    made = {
        **_measured(fields),
        "dense": ArmResult(**fields["dense"]),
        "first_end": fields["first_end"] and FirstEnd(**fields["first_end"]),
        "rival": fields["rival"] and MethodResult(**{**fields["rival"], **_measured(fields["rival"])}),
        "speedup_over_rival": fields["speedup_over_rival"] and Speedup(**fields["speedup_over_rival"]),
    }
    return RaceResult(**{**fields, **made})


def _measured(fields: dict[str, Any]) -> dict[str, Any]:
    """Of a method: what its fields are made into."""
    return {
        "sparse": ArmResult(**fields["sparse"]),
        "speedup": fields["speedup"] and Speedup(**fields["speedup"]),
        "quality": fields["quality"] and RaceQuality(**fields["quality"]),
    }
