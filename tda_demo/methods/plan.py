"""A plan: what a sparse arm decodes under once the prompt has been read.

One contract for every kind of method. A plan says how transformers' own blocks compute under it (``on``, the
specification of every kernel), which neurons that takes and what the output then lacks (``active``,
``missing_output``: what is judged), and which plan comes next once it has served its tokens (``steps``, ``next``). It
is of one text, as in a race, or of a batch of texts, as in an evaluation; a token-level plan (``token``) is the same
for all texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ..kernels.reference import limit
from ..model.feedforward import FeedForward
from ..support.lazy import nn, torch
from .rest import Rest, add_rest, rest_note

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class LayerUse:
    """What a plan used of a layer at T tokens.

    ``neurons`` float64 [T] counts active neurons; where other parts of the matrices than whole neurons are left out, it
    is how many neurons have as many weights as were used of the block. ``unread`` float64 [T, 2]: weight bytes left
    unread in the block, and in the layer's other matrices; None where that follows from ``neurons``.
    """

    neurons: torch.Tensor
    unread: torch.Tensor | None = None


UseObserver = Callable[[FeedForward, LayerUse], None]


class StepTraits:
    """What a step reads and how it can run, as far as the method decides it: the same for a policy and its plans.

    ``token_level`` says that neurons are chosen anew at every token, ``has_kernel`` that the compiled CPU step has a
    kernel which does so. ``full`` names the matrices read whatever is active, of ``gate`` and ``up``; ``extra_bytes``
    is what a step reads besides the model's weights: predictors, sketches. ``rest_bytes`` is what it reads of a layer's
    neuron that is not active, from a low-bit copy; empty where such neurons contribute nothing.
    """

    token_level: bool = False
    has_kernel: bool = False
    full: frozenset[str] = frozenset()
    extra_bytes: int = 0
    rest_bytes: tuple[float, ...] = ()


class Plan(StepTraits, ABC):
    """What a sparse arm decodes under; never changed in place, so arms may start from the same.

    ``steps`` is how many tokens it serves before ``next`` takes its place, None where it serves all that follow;
    ``observes`` says that these run dense, because ``next`` needs their activations. ``note`` is a sentence on what it
    took to make.
    """

    steps: int | None = None
    observes: bool = False
    note: str = ""

    @property
    def sets(self) -> ActiveSets | None:
        """The active sets it computes while it serves; None where that differs from token to token."""
        return None

    @property
    def settled(self) -> ActiveSets | None:
        """The active sets where they are the same for every step; None where what is computed is known step by step."""
        return self.sets if self.steps is None else None

    @property
    def any_rest(self) -> Rest | None:
        """What neurons left out contribute, under it or under a plan after it; None where that is nothing."""
        return None

    @property
    def is_dense(self) -> bool:
        """Whether it is known to compute every neuron at every token."""
        return False

    @abstractmethod
    def on(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        """Until the result is closed the blocks compute under the plan, all texts of a batch at once.

        What is left out is zeroed: nothing else depends on it, so that is the same function with nothing saved.
        ``see(block, use)`` is called with what every block used.
        """

    def packed(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        """``on`` for one text, saving what plain torch can save: the same function."""
        return self.on(blocks, see)

    @abstractmethod
    def active(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The neurons whose column of down is read, bool [texts, T or 1, d_ff], where ``x`` [texts, T, d] and
        ``activations`` [texts, T, d_ff] are the dense model's.
        """

    @abstractmethod
    def missing_output(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """What the block's output lacks where these are the dense model's: float32 [texts, T, d]."""

    def of_active(self, layer: int, activations: torch.Tensor) -> torch.Tensor:
        """Of a step's ``activations`` [1, d_ff or fewer] those it is about, where others were computed too."""
        return activations

    def packs(self) -> list[torch.Tensor]:
        """How many neurons are copied where the plan takes another's place, and how many of the rest's low-bit copy:
        float64 [texts, 2] a layer; none for [].
        """
        return []

    def next(self, activations: Sequence[torch.Tensor]) -> Plan:
        """The plan after ``steps`` tokens; ``activations`` [texts, tokens, d_ff] a layer are theirs, if it observes."""
        raise TypeError(f"{type(self).__name__} serves every token")


class Evidence(Protocol):
    """What a layer's set was chosen by, in one text."""

    def quantiles(self) -> np.ndarray:
        """Of the neurons' scores, from the least on."""
        ...


@dataclass(frozen=True, eq=False)
class ActiveSets(Plan):
    """The neurons a sequence-level method computes: ``masks`` bool [texts, d_ff], one a layer.

    ``rest`` is what the others contribute; None where that is nothing. ``evidence`` is what they were chosen by, every
    text's (inner) of every layer, where that is known.
    """

    masks: tuple[torch.Tensor, ...]
    rest: Rest | None = None
    evidence: tuple[tuple[Evidence, ...], ...] = ()

    @classmethod
    def of(cls, masks: Sequence[torch.Tensor], rest: Rest | None = None) -> ActiveSets:
        """Of one text: ``masks`` [d_ff], one a layer."""
        return cls(tuple(mask[None] for mask in masks), rest)

    @classmethod
    def from_indices(cls, indices: Sequence[torch.Tensor], widths: Sequence[int]) -> ActiveSets:
        """Of one text: int64 ``indices`` of every layer's active neurons, and the ``widths`` of the layers."""
        pairs = zip(indices, widths, strict=True)
        return cls.of(
            [torch.zeros(width, dtype=torch.bool, device=at.device).index_fill(0, at, True) for at, width in pairs]
        )

    @property
    def rest_bytes(self) -> tuple[float, ...]:  # type: ignore[override]
        return () if self.rest is None else self.rest.neuron_bytes

    @property
    def note(self) -> str:  # type: ignore[override]
        return rest_note(self.rest)

    @cached_property
    def indices(self) -> tuple[torch.Tensor, ...]:
        """Of one text: the active neurons of every layer, sorted int64."""
        return tuple(mask.squeeze(0).nonzero().squeeze(1) for mask in self.masks)

    @property
    def d_ff(self) -> tuple[int, ...]:
        """The width of every block."""
        return tuple(mask.shape[1] for mask in self.masks)

    def counts(self) -> list[int]:
        """Of one text: active neurons of every layer."""
        return [len(chosen) for chosen in self.indices]

    def sparsity(self) -> list[float]:
        """Of one text: ``1 - |active set| / d_ff`` per layer, 0..1."""
        return [1 - count / width for count, width in zip(self.counts(), self.d_ff, strict=True)]

    @property
    def sets(self) -> ActiveSets:
        return self

    @property
    def any_rest(self) -> Rest | None:
        return self.rest

    @property
    def is_dense(self) -> bool:
        return all(bool(mask.all()) for mask in self.masks)

    def on(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        with ExitStack() as hooks:
            for block, mask in zip(blocks, self.masks, strict=True):
                if see is not None or not mask.all():
                    hooks.callback(block.down.register_forward_pre_hook(_mask_hook(block, mask, see)).remove)
                hooks.enter_context(add_rest(block, mask, self.rest))
            return hooks.pop_all()

    def packed(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        """Blocks hold copies of their active neurons' weights, where these can be copied; ``see`` is not called."""
        with ExitStack() as restorations:
            for block, indices, mask in zip(blocks, self.indices, self.masks, strict=True):
                if len(indices) < block.d_ff:
                    restorations.callback(limit(block, indices))
                restorations.enter_context(add_rest(block, mask, self.rest))
            return restorations.pop_all()

    def active(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.masks[block.layer][:, None]

    def missing_output(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        masks = self.masks[block.layer]
        lacks = block.outputs_of(activations * ~masks[:, None])
        return lacks if self.rest is None or masks.all() else lacks - self.rest.output(block, x, ~masks)

    def of_active(self, layer: int, activations: torch.Tensor) -> torch.Tensor:
        indices = self.indices[layer]
        return activations if activations.shape[1] == len(indices) else activations.index_select(1, indices)

    def packs(self) -> list[torch.Tensor]:
        """A set is copied whole, and the rest where it contributes, unless the set is everything in every layer."""
        # Layers may lie on several devices.
        leaves_out = ~torch.stack([mask.all(dim=1).cpu() for mask in self.masks]).all(dim=0)
        with_rest = self.rest is not None
        return [
            torch.stack([leaves_out * mask.sum(dim=1).cpu(), with_rest * (~mask).sum(dim=1).cpu()], dim=1).double()
            for mask in self.masks
        ]


def _mask_hook(block: FeedForward, mask: torch.Tensor, see: UseObserver | None) -> Callable[..., torch.Tensor]:
    """Zeroes all activations but those of ``mask`` bool [texts, d_ff]."""

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        activations = inputs[0]
        by_text = activations.view(len(mask), -1, activations.shape[-1])  # opt flattens its batch
        if see is not None:
            see(block, LayerUse(mask.sum(dim=1).double().repeat_interleave(by_text.shape[1])))
        return (by_text * mask[:, None].to(activations.dtype)).view_as(activations)

    return hook


class PlanSchedule:
    """The plan now in force, and which one takes its place as tokens are fed: the one loop for all that renew sets."""

    def __init__(self, plan: Plan) -> None:
        self._take(plan)

    def _take(self, plan: Plan) -> None:
        while plan.steps == 0:
            plan = plan.next(())
        self.plan, self.left = plan, plan.steps
        self._seen: list[list[torch.Tensor]] = []

    def ahead(self, tokens: int) -> int:
        """How many of the next ``tokens`` tokens run under the plan."""
        return tokens if self.left is None else min(self.left, tokens)

    def feed(self, tokens: int, activations: Sequence[torch.Tensor]) -> bool:
        """``tokens`` tokens ran under the plan; whether another takes its place.

        ``activations`` [texts, tokens, d_ff] a layer are theirs, and are looked at only where the plan observes.
        """
        if self.left is None:
            return False
        if self.plan.observes:
            self._seen.append([layer.clone() for layer in activations])  # an arm's next step may overwrite them
        self.left -= tokens
        if self.left > 0:
            return False
        self._take(self.plan.next([torch.cat(layer, dim=1) for layer in zip(*self._seen, strict=True)]))
        return True

    def cover(self, tokens: int) -> bool:
        """Has one plan serve the next ``tokens`` tokens, which come in one piece; whether it is another than before.

        Where the plan would end within the piece, the piece runs dense, as the step that is due then does.
        """
        if self.left is None or tokens <= self.left:
            return False
        before = self.plan
        if not self.plan.observes:
            self._take(self.plan.next(()))
        self.left = tokens
        return self.plan is not before
