"""The lanes of a race, any number of them: whoever has used the least decode time steps next.

Decode time is that of the one clock: a step counts for what ``stats.clock`` lets it count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch

from ..decode.arm import Arm
from ..decode.text import Sampler, TextStream
from ..stats.clock import StepClock
from .events import ArmName, Ended, EndReason, Event, Stepped
from .result import FirstEnd

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
    times: StepClock = field(default_factory=StepClock)
    step_bytes: list[int] = field(default_factory=list)
    fired: list[np.ndarray] = field(default_factory=list)
    logits: torch.Tensor | None = None  # of the last step, until the next one
    ended: EndReason | None = None

    @property
    def tokens(self) -> list[int]:
        return self.stream.tokens

    @property
    def elapsed_ms(self) -> float:
        """Decode time so far, as the race counts it."""
        return self.times.total

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
        self.logits = self.arm.step(self.tokens[-1])
        token = self.choose(self.logits)
        ms = (self.clock() - begin) * 1e3
        read = self.arm.weight_bytes or 0
        self.step_ms.append(ms)
        self.times.add(ms)
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


def run_lanes(
    lanes: Sequence[Lane], stop: threading.Event, between: Callable[[], Iterator[Event]] = lambda: iter(())
) -> Generator[Event, None, FirstEnd | None]:
    """Steps the lane with the least decode time so far, the first where they are level, until all have ended.

    What ``between`` does happens between two steps, outside of every clock.

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
        yield from between()
    return first_end
