"""What a visitor asks of a small sweep, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ..offers import Offers

MOST_VALUES = 6
PASSAGES = (2, 12)
PROMPT_TOKENS, SCORE_TOKENS = 128, 64  # of a passage, as in the shipped sweep
SECONDS = 180.0


@dataclass(frozen=True)
class SweepRequest:
    """``method`` at every one of ``values`` of its dial, on the first ``passages``; None are the defaults."""

    method: str
    values: tuple[float, ...]
    passages: int
    model: str | None = None
    precision: str | None = None


def checked(offers: Offers, *, method: Any, values: Any, passages: Any, model: Any, precision: Any) -> SweepRequest:
    """Whatever a browser sent, as a request; that there is such a method is known once the model is.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    low, high = PASSAGES
    if not isinstance(passages, int | float) or not low <= passages <= high:
        raise UserError(f"The number of passages must be from {low} to {high}.")
    return SweepRequest(
        method=str(method or ""),
        values=_values(values),
        passages=int(passages),
        model=offers.model(model),
        precision=offers.precision(precision),
    )


def suggested(dense: float, sparsest: float) -> tuple[float, ...]:
    """Values of a dial to begin with, the dense end left out: it is measured anyway."""
    return tuple(round(dense + share * (sparsest - dense), 2) for share in (0.08, 0.17, 0.33, 0.5))


def written(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _values(text: Any) -> tuple[float, ...]:
    parts = str(text or "").replace(",", " ").replace(";", " ").split()
    try:
        values = tuple(dict.fromkeys(float(part) for part in parts))
    except ValueError:
        raise UserError("Values: write numbers such as 0.05, 0.1, 0.2.") from None
    if not 1 <= len(values) <= MOST_VALUES:
        raise UserError(f"Values: write 1 to {MOST_VALUES} different numbers such as 0.05, 0.1, 0.2.")
    return values
