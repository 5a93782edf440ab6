"""An arm under active sets that are chosen anew while it writes."""

from __future__ import annotations

from typing import Protocol

import torch

from ..methods.renewal import RenewedSets
from ..methods.sets import ActiveSets
from .arm import Arm


class Changing(Arm, Protocol):
    """An arm that may be given other neurons between two steps.

    ``copied_bytes`` is what it read of the weights to pack those it was last given; 0 where it made no copies.
    """

    @property
    def copied_bytes(self) -> int: ...

    def use(self, sets: ActiveSets | None) -> None:
        """From the next step on it computes ``sets``, or all neurons."""
        ...


class RefreshingArm:
    """Steps ``arm``, which has the neurons of ``sets``, and every ``sets.every``-th time with all neurons.

    What that takes, the dense step, the choice and the copies, falls in the step where it happens: in its time, and in
    its ``weight_bytes`` what the dense step reads and what is read to make the copies. The bytes written are no weights
    read, and the first set's copies belong to ``packing_ms``, before any step.
    """

    def __init__(self, arm: Changing, sets: RenewedSets) -> None:
        self.arm, self.sets = arm, sets
        self.packing_ms = arm.packing_ms
        self.weight_bytes: int | None = None
        self._steps = 0
        self._seen: list[torch.Tensor] = []

    def step(self, token: int) -> torch.Tensor:
        self._steps += 1
        due = self._steps % self.sets.every == 0
        if due:
            self.arm.use(None)
        logits = self.arm.step(token)
        self._seen, self.weight_bytes = self.arm.activations(), self.arm.weight_bytes
        if due:
            self.sets = self.sets.renewed(self._seen)
            self.arm.use(self.sets)
            self.weight_bytes = (self.weight_bytes or 0) + self.arm.copied_bytes
        return logits

    def activations(self) -> list[torch.Tensor]:
        return self._seen

    def computed(self) -> list[int]:
        """How many neurons the last step computed, per layer."""
        return [each.shape[1] for each in self._seen]
