"""The contract of an experiment: a dataclass of settings that measures one claim of the paper on a model.

An experiment is a file of its own (or a folder, where one file would be too long) and a line of the registry,
``EXPERIMENTS``. The command line, the Lab tab and the report take all they need to know of it from here; plots of its
tables on the page are an entry of ``ui.lab.figures.PLOTS``.
"""

from __future__ import annotations

import dataclasses
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..methods.settings import Range, check, setting
from ..support.progress import Report, silent
from .findings import Check, Finding, Table


@dataclass(frozen=True)
class Claim:
    """``statement``: the paper's claim in two sentences; ``prediction``: what the experiment sees if it is true.

    ``symbols`` says what letters in them and in the findings' names stand for.
    """

    statement: str
    prediction: str
    symbols: str = ""


@dataclass(frozen=True)
class NumberInput:
    """How the page asks for a setting: from ``low`` to ``high``; where ``step`` is whole, for a whole number."""

    label: str
    low: float
    high: float
    step: float = 1


@dataclass(frozen=True)
class OpenRange(Range):
    """An interval without its ends."""

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"


def number_setting(
    default: float, explanation: str, within: Range, number_input: NumberInput, metavar: str = "N"
) -> Any:
    """A dataclass field of an experiment. The library and the command line take what is ``within`` the range, the page
    only what ``number_input`` allows, so that a run stays short. ``metavar`` and ``explanation`` are the command line's
    help, and the option's type is the default's."""
    known = setting(default, explanation, within).metadata
    return dataclasses.field(default=default, metadata={**known, "number_input": number_input, "metavar": metavar})


def seed_setting() -> Any:
    number_input = NumberInput("Seed", 0, 2**31 - 1)
    return number_setting(0, "the same seed gives the same numbers", Range(0, 2**62 - 1), number_input)


def keep_setting() -> Any:
    """The share of the neurons that is an active set."""
    number_input = NumberInput("Share counted as active", 0.05, 0.95, 0.05)
    return number_setting(0.3, "of the neurons that counts as active", OpenRange(0, 1), number_input, metavar="SHARE")


@dataclass(frozen=True)
class Experiment(ABC):
    """Settings of an experiment, and everything that the command line and the page show of it before it runs.

    ``summary`` is its line of the command line's help, ``duration`` the time of the default size in words,
    ``text_use`` what a text of the visitor's own is used for, empty where it takes none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    claim: ClassVar[Claim]
    duration: ClassVar[str]
    text_use: ClassVar[str] = ""
    uses_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        check(self)

    @abstractmethod
    def run(
        self,
        lm: Any,
        text: Sequence[str] | str | None = None,
        report: Report = silent,
        stop: threading.Event | None = None,
        on_point: Callable[[Any], None] | None = None,
    ) -> Finding:
        """Measures the claim and leaves the model as it was.

        Args:
            lm: the LoadedModel measured; None where the experiment uses none.
            text: texts to read, or a single one, which is cut into pieces; None for the project's own.
            stop: set from another thread, it ends the experiment early: the finding is of what had been measured.
            on_point: is told every measurement that can be drawn while the experiment goes on (``live_tables``).

        Raises:
            UserError: the model or the texts do not fit the settings.
        """

    @classmethod
    def live_tables(cls, points: Sequence[Any]) -> tuple[Table, ...]:
        """What can be drawn of the ``points`` that ``on_point`` was told so far: some of the finding's tables."""
        return ()

    @classmethod
    def number_inputs(cls) -> dict[str, NumberInput]:
        """How the page asks for the settings, by the setting's name."""
        return {field.name: field.metadata["number_input"] for field in dataclasses.fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every setting, by its name."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    def finding(
        self,
        model: str,
        checks: Sequence[Check],
        notes: Sequence[str],
        tables: Sequence[Table],
        *,
        complete: bool = True,
    ) -> Finding:
        """What this experiment, with its settings, found on the model named ``model``."""
        return Finding(
            experiment=self.name,
            claim=self.claim.statement,
            prediction=self.claim.prediction,
            model=model,
            settings=dataclasses.asdict(self),
            checks=tuple(checks),
            notes=tuple(notes),
            tables=tuple(tables),
            complete=complete,
        )
