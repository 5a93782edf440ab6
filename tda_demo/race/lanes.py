"""The lanes of a race, any number of them, and the events they tell it in.

Whoever has used the least decode time steps next.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import numpy as np
import torch

from ..decode.arm import Arm
from ..decode.text import Sampler, TextStream
from ..methods.plan import ActiveSets
from .result import FirstEnd, RaceResult

ArmName = Literal["dense", "sparse", "rival"]
EndReason = Literal["eos", "length", "context", "stopped"]


@dataclass(frozen=True, eq=False)
class PromptRead:
    """The prompt has been read and the active sets chosen. ``fired`` int64 [prompt tokens, layers].

    ``active`` and ``byte_bound`` are None where what is computed is known step by step: under token-level methods and
    active sets that are chosen anew. ``rival`` is the same of the rival, None in a race without one.
    """

    tokens: tuple[str, ...]
    prefill_ms: float
    selection_ms: float
    packing_ms: float
    active: ActiveSets | None
    fired: np.ndarray
    byte_bound: float | None
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
class Judging:
    """Decoding is over; the teacher-forced passes that give agreement, KL and realised CETT begin."""


@dataclass(frozen=True)
class Finished:
    result: RaceResult


Event = PromptRead | Stepped | Ended | Judging | Finished

Count = Callable[[Arm], np.ndarray]
"""What fired at an arm's last step, int64 [layers]."""


@dataclass
class Lane:
    """An arm in a race: its text so far, the time it has used and, of a method's arm, what ``count`` gave."""

    name: ArmName
    arm: Arm
    choose: Sampler
    stream: TextStream
    eos_ids: frozenset[int]
    limit: int
    limit_reason: EndReason
    count: Count | None = None
    clock: Callable[[], float] = time.perf_counter
    step_ms: list[float] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    fired: list[np.ndarray] = field(default_factory=list)
    ended: EndReason | None = None

    @property
    def tokens(self) -> list[int]:
        return self.stream.tokens

    @property
    def elapsed_ms(self) -> float:
        return math.fsum(self.step_ms)

    @property
    def mean_bytes(self) -> float | None:
        """Weight bytes of a step; None where no step was taken and they depend on the token."""
        return fmean(self.step_bytes) if self.step_bytes else self.arm.weight_bytes

    def start(self, prompt_logits: torch.Tensor) -> Iterator[Event]:
        """The first token, from the logits all arms share."""
        yield from self._accept(self.choose(prompt_logits), None, None, None)

    def advance(self) -> Iterator[Event]:
        """One timed step; what fired is counted after the clock has stopped."""
        begin = self.clock()
        token = self.choose(self.arm.step(self.tokens[-1]))
        ms = (self.clock() - begin) * 1e3
        read = self.arm.weight_bytes or 0
        self.step_ms.append(ms)
        self.step_bytes.append(read)
        fired = None
        if self.count is not None:
            fired = self.count(self.arm)
            self.fired.append(fired)
        yield from self._accept(token, ms, read, fired)

    def end(self, reason: EndReason) -> Iterator[Event]:
        self.ended = reason
        if rest := self.stream.finish():
            yield Stepped(self.name, len(self.tokens) - 1, rest, None, None, None)
        yield Ended(self.name, reason)

    def _accept(
        self, token: int, ms: float | None, weight_bytes: int | None, fired: np.ndarray | None
    ) -> Iterator[Event]:
        yield Stepped(self.name, len(self.tokens), self.stream.push(token), ms, weight_bytes, fired)
        if token in self.eos_ids:
            yield from self.end("eos")
        elif len(self.tokens) == self.limit:
            yield from self.end(self.limit_reason)


def run_lanes(lanes: Sequence[Lane], stop: threading.Event) -> Generator[Event, None, FirstEnd | None]:
    """Steps the lane with the least decode time so far, the first where they are level, until all have ended.

    Returns how far all were when the first one ended; None where it ended without a step, or the race was stopped.
    """
    first_end: FirstEnd | None = None
    while running := [lane for lane in lanes if lane.ended is None]:
        if stop.is_set():
            for lane in running:
                yield from lane.end("stopped")
            return None
        lane = min(running, key=lambda lane: lane.elapsed_ms)
        yield from lane.advance()
        if lane.ended is not None and len(running) == len(lanes):
            first_end = FirstEnd(lane.name, {other.name: len(other.tokens) for other in lanes})
    return first_end
