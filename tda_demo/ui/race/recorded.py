"""The recorded race that stands on the page until somebody runs one: its frames, made by what draws a live race."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from ...methods import METHODS, Method
from ...race.events import Stepped
from ...race.recording import Recording
from ...support.files import DATA
from .. import wording
from ..requests import RunRequest
from .runs import Ready
from .stage import facts_of, stage
from .view import RaceView

FILE = DATA / "recorded.json"
_FRAMES = 60
_SECONDS = 6.0  # how long it plays: a small model's race is over before it is seen
_PROMPT = "Why is the sky blue? Explain it in simple words."


@dataclass(frozen=True)
class Recorded:
    """The ``prompt``, the ``stage`` with its frames, and the ``facts`` of the machine."""

    prompt: str
    stage: dict[str, Any]
    facts: list[list[str]]


@cache
def recorded_race() -> Recorded:
    """The shipped one; without it the page before its first race."""
    if not FILE.is_file():
        return Recorded(_PROMPT, stage(RaceView()), [])
    recording = Recording.of(FILE.read_text(encoding="utf-8"))
    view = _view(recording)
    first, frames = None, []
    value: dict[str, Any] = {}
    for at, now in _drawn(recording, view):
        first = first or now
        frames.append({"at": at, "change": change(value or first, now)})
        value = now
    assert first is not None, "a race has events"
    facts = [*facts_of(view), *wording.machine({"model": recording.result.model, **recording.result.environment})]
    return Recorded(recording.prompt, {**first, "replay": {"frames": frames, "seconds": _SECONDS}}, facts)


def _view(recording: Recording) -> RaceView:
    """Before its first event."""
    result = recording.result
    methods = [_method(raced.method, raced.settings) for raced in result.methods]
    view = RaceView(RunRequest(recording.prompt, methods[0], max_new_tokens=recording.max_new_tokens, rival=methods[1]))
    view.sparse.title, view.rival.title = recording.titles
    view.apply(Ready(tuple(recording.d_ff), recording.mlp_bytes))
    return view


def _method(name: str, settings: dict[str, Any]) -> Method:
    """As it raced: JSON has made lists of its tuples."""
    return METHODS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def _drawn(recording: Recording, view: RaceView) -> list[tuple[float, dict[str, Any]]]:
    """Frames: the share 0..1 of the race's time at which each comes, and the stage then."""
    badge = _badge(recording)
    whole = sum(event.ms or 0.0 for event in recording.events if isinstance(event, Stepped))
    spent, due, frames = 0.0, 0.0, []
    for event in recording.events:
        view.apply(event)
        if isinstance(event, Stepped):
            spent += event.ms or 0.0
        if view.sparse.prompt is not None and (spent >= due or view.over):
            frames.append((round(spent / whole, 4), _told(view, badge)))
            due += whole / _FRAMES
    return frames


def _told(view: RaceView, badge: str) -> dict[str, Any]:
    value = stage(view, "the recorded race")
    return {**value, "remedy": None, "slots": {**value["slots"], "badge": badge}}


def _badge(recording: Recording) -> str:
    result = recording.result
    steps = sum(event.ms or 0.0 for event in recording.events if isinstance(event, Stepped))
    slower = _SECONDS / (steps / 1000)
    pace = f", played {slower:.0f} times slower" if slower >= 1.5 else ""
    return f"Recorded: {result.model}, {result.precision}, {result.machine}, {recording.date}{pace}."


def change(old: Any, new: Any) -> Any:
    """What ``assets/stage.js`` makes ``new`` of ``old`` by: of dictionaries the keys that differ, of lists and texts
    that grew ``{"$add": what is new}``.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: change(old.get(key), value) for key, value in new.items() if key not in old or old[key] != value}
    grew = isinstance(new, list | str) and isinstance(old, type(new)) and len(old) > 0 and new[: len(old)] == old
    return {"$add": new[len(old) :]} if grew else new
