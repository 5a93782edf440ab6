"""The race of the dense model against the same model under one method or two, told as a stream of events."""

from .lanes import ArmName, Ended, Event, Finished, Judging, Lane, PromptRead, Stepped, run_lanes
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
