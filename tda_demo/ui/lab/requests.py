"""What a visitor asked to have measured, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ...theory.experiment import Experiment, NumberInput
from ..limits import Limits
from ..offers import Offers

SECONDS_PER_RUN = 300.0  # of one experiment on a public page; then it concludes from what it has


@dataclass(frozen=True)
class LabRequest:
    """``text`` is empty for the project's own texts; ``model`` None for the embedded one."""

    experiment: Experiment
    text: str = ""
    model: str | None = None


def checked(
    experiment: type[Experiment],
    offers: Offers,
    limits: Limits,
    *,
    sizes: dict[str, Any],
    text: Any = "",
    model: Any = None,
) -> LabRequest:
    """Whatever a browser sent, as a request within the limits.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    values = {name: _number(asked, sizes[name]) for name, asked in experiment.number_inputs().items()}
    return LabRequest(
        experiment(**values),
        _text(text, limits.prompt_characters) if experiment.text_use else "",
        offers.model(model) if experiment.uses_model else None,
    )


def _number(asked: NumberInput, value: Any) -> float | int:
    whole = asked.step == int(asked.step)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not asked.low <= number <= asked.high or (whole and number != int(number)):  # true for NaN too
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{asked.label}: {kind} from {asked.low:,g} to {asked.high:,g}.")
    return int(number) if whole else number


def _text(value: Any, most: int) -> str:
    # Half of a surrogate pair can arrive in JSON; no tokenizer takes it.
    text = value.encode("utf-8", "replace").decode("utf-8").strip() if isinstance(value, str) else ""
    if len(text) > most:
        raise UserError(f"Your text has {len(text):,} characters; this page takes at most {most:,}: shorten it.")
    return text
