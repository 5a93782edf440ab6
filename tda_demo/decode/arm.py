"""The contracts of decoding: an arm is one decoder, a prefill is what all arms of a race start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..methods.plan import ActiveSets, Plan


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
