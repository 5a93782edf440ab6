"""The transformers model itself, any family. The sparse arm is the same modules holding fewer neurons."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from ..kernels.gpu.device import finish
from ..methods.plan import LayerUse, Plan, UseObserver
from ..model.feedforward import find_blocks
from .arm import Arm, Prefill, RefreshingArm
from .engine import Engine
from .shared_model import forward, now_ms, share_weights
from .weight_bytes import StepBytes, held_bytes

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ..model.loading import LoadedModel


class EagerEngine(Engine):
    """Plain transformers, with torch's own kernels in both arms."""

    name = "transformers eager"

    def _count_bytes(self) -> StepBytes:
        return held_bytes(self.lm)

    def dense_arm(self, prefill: Prefill, room: int) -> EagerArm:
        return EagerArm(share_weights(self.lm.model), self.lm, prefill.cache, self.step_bytes)

    def sparse_arm(self, prefill: Prefill, room: int) -> Arm:
        arm = self.dense_arm(prefill, room)
        begin = now_ms(self.lm.device)
        arm.use(prefill.plan)
        arm.packing_ms = now_ms(self.lm.device) - begin
        return arm if prefill.plan.steps is None else RefreshingArm(arm, prefill.plan, self.step_bytes)


class EagerArm:
    """A transformers model of its own with a DynamicCache of its own.

    Under a token-level plan its blocks compute all neurons, so a step reads what a dense one does and the plan's own
    bytes; so they do where bitsandbytes has quantised them or accelerate keeps them elsewhere.
    """

    def __init__(self, model: PreTrainedModel, lm: LoadedModel, prompt_cache: Cache, step_bytes: StepBytes) -> None:
        self.model = model
        self.blocks = find_blocks(model)
        self.device = lm.device
        self.cache = copy.deepcopy(prompt_cache)
        self.packing_ms = 0.0
        self.plan: Plan | None = None
        self._step_bytes = step_bytes
        self._installed = ExitStack()
        self._activations: list[torch.Tensor] = []
        self._uses: list[LayerUse] = []
        self.use(None)

    def use(self, plan: Plan | None) -> None:
        """From the next step on it computes what ``plan`` says, or all neurons."""
        self._installed.close()
        self.plan = plan
        activations, uses = self._activations, self._uses  # not self: a cycle would outlive the arm
        if plan is not None:
            self._installed.enter_context(self._install(plan, lambda _block, use: uses.append(use)))
        for block in self.blocks:  # both arms carry these hooks, so the time they take falls on both alike
            hook = block.down.register_forward_pre_hook(lambda _module, inputs: activations.append(inputs[0]))
            self._installed.callback(hook.remove)

    def _install(self, plan: Plan, see: UseObserver) -> ExitStack:
        """Until the result is closed the blocks compute under ``plan``."""
        return plan.packed(self.blocks, see)

    @property
    def weight_bytes(self) -> int:
        if self.plan is None:
            return self._step_bytes.dense
        kept = self.computed() if self.plan.sets is None else self.plan.sets.counts()
        return round(self._step_bytes.read(self.plan, kept).bytes)

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        self._activations.clear()
        self._uses.clear()
        logits = forward(self.model, self.cache, [token], self.device)[0]
        finish(self.device)
        return logits

    def activations(self) -> list[torch.Tensor]:
        activations = [layer.reshape(1, -1) for layer in self._activations]
        if self.plan is None:
            return activations
        return [self.plan.of_active(layer, computed) for layer, computed in enumerate(activations)]

    def computed(self) -> list[int]:
        if self._uses:
            return [round(float(use.neurons.sum())) for use in self._uses]
        return [layer.shape[1] for layer in self.activations()]
