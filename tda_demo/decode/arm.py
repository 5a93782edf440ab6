"""Arms: one decoder each. What they start from, one whose active sets change while it writes, and one to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..methods.plan import ActiveSets, Plan, PlanSchedule
from .text import most_likely
from .weight_bytes import StepBytes


@dataclass(frozen=True, eq=False)
class Prefill:
    """What reading the prompt left behind, shared by all arms.

    ``logits`` float32 [vocabulary] of the last prompt token; ``fired`` int64 [T, layers]; ``cache`` is the engine's own
    and is copied, never written, by what starts from it. ``plan`` is what the sparse arm decodes under. ``prefill_ms``
    leaves out ``selection_ms``.
    """

    tokens: int
    logits: torch.Tensor
    cache: Any
    plan: Plan
    fired: torch.Tensor
    prefill_ms: float
    selection_ms: float

    @property
    def active(self) -> ActiveSets:
        """The active sets of a plan that has the same for every step."""
        if self.plan.settled is None:
            raise TypeError(f"{type(self.plan).__name__} has no active sets that hold for every step")
        return self.plan.settled


class Arm(Protocol):
    """One decoder.

    ``weight_bytes`` is what the last step read of weights, everything counted, copies for later steps too; before the
    first step what every step will, None where that depends on the token. ``packing_ms`` is what making the copies of
    the active neurons took before the first step, 0 where none were made.
    """

    @property
    def weight_bytes(self) -> int | None: ...

    @property
    def packing_ms(self) -> float: ...

    def step(self, token: int) -> torch.Tensor:
        """Feeds one token; float32 [vocabulary] logits of the next, ready when the call returns."""
        ...

    def activations(self) -> list[torch.Tensor]:
        """The last step's activations of the neurons computed, [1, k] per layer."""
        ...

    def computed(self) -> list[int]:
        """How many neurons the last step computed, per layer."""
        ...


class SwitchableArm(Arm, Protocol):
    """An arm that may be given another plan between two steps."""

    def use(self, plan: Plan | None) -> None:
        """From the next step on it computes what ``plan`` says, copying neurons where it has to, or all of them."""
        ...


class RefreshingArm:
    """Steps ``arm``, which has the neurons of ``plan``, and gives it every plan that takes its place.

    What that takes, the dense step, the choice and the copies, falls in the step where it happens: in its time, and in
    its ``weight_bytes`` what the dense step reads and what is read to make the copies. The bytes written are no weights
    read, and the first set's copies belong to ``packing_ms``, before any step.
    """

    def __init__(self, arm: SwitchableArm, plan: Plan, step_bytes: StepBytes) -> None:
        self.arm = arm
        self.packing_ms = arm.packing_ms
        self.weight_bytes: int | None = None
        self._schedule = PlanSchedule(plan)
        self._step_bytes = step_bytes
        self._activations: list[torch.Tensor] = []
        if self._schedule.plan is not plan or plan.observes:
            self._take()

    def step(self, token: int) -> torch.Tensor:
        logits = self.arm.step(token)
        self._activations, self.weight_bytes = self.arm.activations(), self.arm.weight_bytes
        if self._schedule.feed(1, [layer[None] for layer in self._activations]):
            plan = self._schedule.plan
            copied = self._step_bytes.copying([layer[0].tolist() for layer in plan.packs()], plan.rest_bytes)
            self.weight_bytes = (self.weight_bytes or 0) + round(copied)
            self._take()
        return logits

    def _take(self) -> None:
        plan = self._schedule.plan
        self.arm.use(None if plan.observes else plan)

    def activations(self) -> list[torch.Tensor]:
        return self._activations

    def computed(self) -> list[int]:
        return [layer.shape[1] for layer in self._activations]


class ArmDecoder:
    """An arm that goes on greedily, as a race's does, and starts over from the prompt when its room is used up."""

    def __init__(self, make: Callable[[], Arm], first: int, room: int) -> None:
        self.make, self.first, self.room = make, first, room
        self.left = 0

    def times_ms(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            if self.left == 0:
                self.arm, self.token, self.left = self.make(), self.first, self.room
            begin = time.perf_counter()
            self.token = most_likely(self.arm.step(self.token))
            times.append((time.perf_counter() - begin) * 1e3)
            self.left -= 1
        return times
