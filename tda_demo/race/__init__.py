"""The race of the dense model against the same model under one method or two, told as a stream of events."""

from .events import ArmName, Ended, Event, Finished, Judging, PromptRead, Stepped
from .lanes import Lane, run_lanes
from .run import RaceSettings, race

__all__ = [
    "ArmName",
    "Ended",
    "Event",
    "Finished",
    "Judging",
    "Lane",
    "PromptRead",
    "RaceSettings",
    "Stepped",
    "race",
    "run_lanes",
]
