"""The contract of an arm, and the choice of the engine that runs all arms of a race."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..feedforward import FeedForward
from ..methods.base import ActiveSets, Plan, Selector
from ..methods.renewal import RenewedSets, Renewing
from ..methods.token import TokenRule
from ..progress import Report, silent

if TYPE_CHECKING:
    from ..models import LoadedModel


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
        """The plan of a sequence-level method; an engine that runs no others asks for it."""
        if isinstance(self.plan, TokenRule):
            raise TypeError("this engine runs sequence-level methods only")
        return self.plan

    @property
    def settled(self) -> ActiveSets | None:
        """The active sets where they are the same for every step; what is computed is else known step by step."""
        return None if isinstance(self.plan, TokenRule | RenewedSets) else self.plan


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


class TokenArm(Arm, Protocol):
    """An arm that may decode under a token-level method, or under active sets that are chosen anew."""

    def computed(self) -> list[int]:
        """How many neurons the last step computed, per layer."""
        ...


@dataclass(frozen=True, eq=False)
class Judgement:
    """Teacher-forced on one text: float32 [positions, vocabulary] logits of both models, realised CETT per layer."""

    dense_logits: torch.Tensor
    sparse_logits: torch.Tensor
    cett: list[float]


class Engine(Protocol):
    """Runs a model. Nothing it does is visible to another engine of the same model, so races may run in parallel."""

    name: str

    def warm_up(self, report: Report = silent, chooser: Selector | TokenRule | None = None) -> None:
        """Runs what is slow only once (thread pools, compilation), so that it falls outside every timing.

        A token-level method's ``chooser`` has a kernel of its own to compile.
        """
        ...

    def prefill(self, ids: list[int], chooser: Selector | TokenRule) -> Prefill: ...

    def prefills(self, ids: list[int], choosers: Sequence[Selector | TokenRule]) -> list[Prefill]:
        """One pass over the prompt that all ``choosers`` look at: a prefill each, of the same logits and cache."""
        ...

    def dense_arm(self, prefill: Prefill, room: int) -> Arm:
        """An arm that has read the prompt and may take ``room`` steps."""
        ...

    def sparse_arm(self, prefill: Prefill, room: int) -> Arm:
        """The same under the prefill's plan; a ``TokenArm`` where ``prefill.settled`` is None."""
        ...

    def skips(self, chooser: Selector | TokenRule, block: FeedForward) -> bool:
        """Whether the sparse arm under ``chooser`` leaves weights of ``block`` unread, or reads all and zeroes."""
        ...

    def judge(self, prefill: Prefill, tokens: list[int]) -> Judgement:
        """Both models on ``tokens``, which follow the prompt, in one pass each."""
        ...


def engine_for(lm: LoadedModel, *choosers: Selector | TokenRule) -> Engine:
    """The fastest engine that runs ``lm`` under each of ``choosers``; without one, under any sequence-level method."""
    from .cpu.fast_linears import FastLinearsEngine
    from .cpu.layout import has_layout
    from .cpu.step import CpuStepEngine
    from .eager import EagerEngine
    from .gpu.graph import CudaGraphEngine, can_decode

    if lm.is_spread:
        return EagerEngine(lm)
    rules = [chooser for chooser in choosers if isinstance(chooser, TokenRule)]
    if has_layout(lm) and all(rule.has_kernel for rule in rules):
        return CpuStepEngine(lm)
    if can_decode(lm) and not rules and not any(isinstance(chooser, Renewing) for chooser in choosers):
        return CudaGraphEngine(lm)
    return FastLinearsEngine(lm) if lm.device.type == "cpu" else EagerEngine(lm)
