"""What a race tells as it goes. Known without torch, so that the page can show a recorded race before it is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .result import RaceResult

if TYPE_CHECKING:
    from ..methods.plan import ActiveSets

ArmName = Literal["dense", "sparse", "rival"]
EndReason = Literal["eos", "length", "context", "stopped"]


@dataclass(frozen=True, eq=False)
class PromptRead:
    """The prompt has been read and the active sets chosen. ``fired`` int64 [prompt tokens, layers].

    ``active``, ``kept`` (how many neurons of each layer are in it) and ``byte_bound`` are None where what is computed
    is known step by step: under token-level methods and active sets that are chosen anew. ``scores`` float64 [layers,
    quantiles] of TDA's neurons, None elsewhere. ``rival`` is the same of the rival, None in a race without one.
    """

    tokens: tuple[str, ...]
    prefill_ms: float
    selection_ms: float
    packing_ms: float
    active: ActiveSets | None
    fired: np.ndarray
    byte_bound: float | None
    kept: tuple[int, ...] | None = None
    scores: np.ndarray | None = None
    rival: PromptRead | None = None


@dataclass(frozen=True, eq=False)
class Stepped:
    """Token ``index`` of an arm's text. The first comes from the prompt's own logits: no ``ms``, bytes or ``fired``.

    ``text`` is what the token adds; ``weight_bytes`` what the step read; ``fired`` int64 [layers], neurons that fired
    at the step, of a method's arm only: where ``PromptRead.active`` is None, those it computed.
    """

    arm: ArmName
    index: int
    text: str
    ms: float | None
    weight_bytes: int | None
    fired: np.ndarray | None


@dataclass(frozen=True)
class Ended:
    """An arm has stopped: at its end token, at the length asked for, at the model's context limit, or by the user."""

    arm: ArmName
    reason: EndReason


@dataclass(frozen=True)
class Priced:
    """A slice of the dense arm's text has been judged, between steps: ``agrees`` where both models' next token is the
    same, and ``kl`` in nats, a value a position, teacher-forced on the positions after those already judged.
    """

    arm: ArmName
    agrees: tuple[bool, ...]
    kl: tuple[float, ...]


@dataclass(frozen=True)
class Judging:
    """Decoding is over; what is left to judge is judged now, and realised CETT."""


@dataclass(frozen=True)
class Finished:
    result: RaceResult


Event = PromptRead | Stepped | Ended | Priced | Judging | Finished
