"""The contract of a token-level method: which neurons fire is decided anew at every token.

The prompt runs dense; from then on every block asks the policy, which may look at the block's input alone (what a
kernel can do before it reads any weight) or at what part of the block has already computed. Here a block computes
everything and the rest is zeroed, which is the specification; a compiled kernel skips it.

Most policies choose neurons and say so with ``fire`` alone; one that leaves out something else overrides the other
methods too (``teal.ChannelPolicy``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..model.feedforward import FeedForward
from ..model.hooks import Change, intercept
from ..support.lazy import nn, torch
from .plan import LayerUse, Plan, UseObserver
from .policy import Policy, PromptReader


@dataclass(frozen=True)
class StepUse:
    """What a kernel's last step used: ``neurons`` of every layer, and ``unread`` bytes of all layers (``LayerUse``)."""

    neurons: list[int]
    unread: tuple[float, float] | None = None


class TokenPolicy(Policy, Plan):
    """A token-level method bound to one model: a policy, and its own plan, for it needs nothing of the prompt.

    ``kernel`` holds the arrays of the compiled CPU kernel, a type of ``kernels.cpu.token``; None where there is none.
    ``whole`` says that it computes a neuron whole or not at all: it then works on a copy of the MLP's weights in which
    a neuron lies in one piece. ``order`` int64 [d_ff] of every layer is how neurons have to lie in that copy; None
    where they may lie as they do.
    """

    token_level = True
    whole: bool = False
    order: tuple[torch.Tensor, ...] | None = None

    @property
    def kernel(self) -> Any:
        return None

    @cached_property
    def has_kernel(self) -> bool:  # type: ignore[override]
        """Whether ``kernel`` is not None; a policy overrides it whose kernel takes copying the model's weights."""
        return self.kernel is not None

    def step_use(self, kernel: Any, computed: np.ndarray) -> StepUse:
        """Of the last step of ``kernel``, which computed ``computed`` int64 [layers] neurons' columns of down."""
        return StepUse(computed.tolist())

    @abstractmethod
    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The neurons whose column of down is read, bool [T, d_ff], of a block with input ``x`` [T, d] and
        ``activations`` [T, d_ff].
        """

    def layer_use(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> LayerUse:
        """What it would use of the block alone where these are the dense model's input and activations, [T, ...]."""
        return LayerUse(self.fire(block, x, activations).sum(dim=1).double())

    def sparse_activations(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """What takes the place of the dense model's ``activations``: [T, d_ff]."""
        return activations * self.fire(block, x, activations)

    def rest(self, block: FeedForward, x: torch.Tensor, fired: torch.Tensor) -> torch.Tensor | None:
        """What the neurons that are not ``fired`` [T, d_ff] still add to the block's output, float [T, d], in some
        cheaper way; None where they add nothing.
        """
        return None

    def reader(self) -> PromptReader:
        return _IdleReader(self)

    def count_fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.layer_use(block, x, activations).neurons.round().long()

    def active(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.fire(block, x.flatten(0, 1), activations.flatten(0, 1)).view(activations.shape)

    def missing_output(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        flat_x, flat = x.flatten(0, 1), activations.flatten(0, 1)
        left_out = flat.float() - self.sparse_activations(block, flat_x, flat).float()
        rest = self.rest(block, flat_x, self.fire(block, flat_x, flat))
        lacks = block.outputs_of(left_out)
        return (lacks if rest is None else lacks - rest).view(*activations.shape[:2], -1)

    def on(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        with ExitStack() as hooks:
            for block in blocks:
                rest: list[torch.Tensor] = []
                hooks.callback(intercept(block, self._keep_fired(block, see, rest)))
                hooks.callback(block.down.register_forward_hook(_add_rest(rest)).remove)
            return hooks.pop_all()

    def _keep_fired(self, block: FeedForward, see: UseObserver | None, rest: list[torch.Tensor]) -> Change:
        def change(x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
            fired = self.fire(block, x, activations.reshape(len(x), -1))
            if see is not None:
                see(block, LayerUse(fired.sum(dim=1).double()))
            if (added := self.rest(block, x, fired)) is not None:
                rest.append(added)
            return activations * fired.view_as(activations)

        return change


class _IdleReader(PromptReader):
    """Of a token-level method, which needs nothing of a prompt."""

    def __init__(self, policy: TokenPolicy) -> None:
        self.policy = policy

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        pass

    def plan(self) -> Plan:
        return self.policy


def _add_rest(rest: list[torch.Tensor]) -> Callable[..., torch.Tensor | None]:
    def hook(_module: nn.Module, _arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        return output + rest.pop().view_as(output).to(output.dtype) if rest else None

    return hook
