"""The race of the dense model against the same model under one method or two, told as a stream of events."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .events import ArmName, Ended, Event, Finished, Judging, Priced, PromptRead, Stepped
    from .lanes import Lane, run_lanes
    from .run import RaceSettings, race

_HOME = {"RaceSettings": "run", "race": "run", "Lane": "lanes", "run_lanes": "lanes"}  # the others: ``events``
__all__ = [
    "ArmName",
    "Ended",
    "Event",
    "Finished",
    "Judging",
    "Lane",
    "Priced",
    "PromptRead",
    "RaceSettings",
    "Stepped",
    "race",
    "run_lanes",
]


def __getattr__(name: str) -> object:
    # Imported when first asked for: the page reads ``result`` before torch is in memory.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME.get(name, 'events')}", __name__), name)
