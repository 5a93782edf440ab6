"""An arm under a plan that others follow: active sets that are chosen anew while it writes."""

from __future__ import annotations

from typing import Protocol

import torch

from ..methods.plan import Plan, PlanSchedule
from .arm import Arm
from .weight_bytes import StepBytes


class Changing(Arm, Protocol):
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

    def __init__(self, arm: Changing, plan: Plan, step_bytes: StepBytes) -> None:
        self.arm = arm
        self.packing_ms = arm.packing_ms
        self.weight_bytes: int | None = None
        self._schedule = PlanSchedule(plan)
        self._step_bytes = step_bytes
        self._activations: list[torch.Tensor] = []
        if self._schedule.plan is not plan:
            self._take()

    def step(self, token: int) -> torch.Tensor:
        logits = self.arm.step(token)
        self._activations, self.weight_bytes = self.arm.activations(), self.arm.weight_bytes
        if self._schedule.feed(1, self._activations):
            packed = [int(count) for count in self._schedule.plan.packs()]
            self.weight_bytes = (self.weight_bytes or 0) + self._step_bytes.copied(packed)
            self._take()
        return logits

    def _take(self) -> None:
        plan = self._schedule.plan
        self.arm.use(None if plan.observes else plan)

    def activations(self) -> list[torch.Tensor]:
        return self._activations

    def computed(self) -> list[int]:
        return [layer.shape[1] for layer in self._activations]
