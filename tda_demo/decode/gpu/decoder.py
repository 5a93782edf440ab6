"""A transformers model in fixed memory, its one-token step prepared once, and the arm that decodes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ...kernels.gpu.device import Runner, Step, current_device, finish
from ...kernels.gpu.linear import LinearTiles
from ...methods.plan import ActiveSets, Plan, StepTraits
from ...model.feedforward import find_blocks
from ..arm import Prefill
from ..shared_model import now_ms
from ..weight_bytes import StepBytes
from .kernel_blocks import KernelBlock
from .kernel_layers import install_layers
from .static_cache import StaticPromptCache, attention_masks

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

MakeRunner = Callable[[Step], Runner]


class _TokenStep:
    """Token and position in, float32 [vocabulary] logits out, all in tensors that stay where they are.

    Not a method of GraphDecoder: the runner keeps it, and a cycle would keep the memory until Python looks for such.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kernels: list[KernelBlock],
        linear: LinearTiles | None,
        prompt_cache: Cache,
        positions: int,
    ) -> None:
        device = model.device
        self.model = model
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.cache = StaticPromptCache(prompt_cache, positions, self.position)
        self.logits = torch.zeros(model.config.get_text_config().vocab_size, device=device)
        self.seen: list[torch.Tensor] = []
        # Attention layers of ours see the positions there are without a mask. One that is there already, whatever it
        # holds, keeps transformers from building its own.
        ours = install_layers(model, linear, positions)
        self.mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device) if ours else None
        if not kernels:
            seen = self.seen
            for block in find_blocks(model):
                block.down.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def __call__(self) -> None:
        self.seen.clear()
        mask = self.mask
        if mask is None:
            mask = attention_masks(self.model.config, self.cache.positions, self.position, self.model.dtype)
        output = self.model(
            input_ids=self.token,
            position_ids=self.position[None],
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits.copy_(output.logits[0, -1])
        self.position.add_(1)


class GraphDecoder:
    """A module tree of its own over a model's weights, its cache, and the step as ``make_runner`` runs it."""

    def __init__(
        self,
        model: PreTrainedModel,
        kernels: list[KernelBlock],
        linear: LinearTiles | None,
        prompt_cache: Cache,
        positions: int,
        make_runner: MakeRunner,
    ) -> None:
        step = _TokenStep(model, kernels, linear, prompt_cache, positions)
        self.kernels = kernels
        self.token, self.cache, self.logits, self._seen = step.token, step.cache, step.logits, step.seen
        with torch.no_grad(), current_device(model.device):
            self.runner = make_runner(step)

    @torch.no_grad()
    def list_neurons(self, sets: ActiveSets | None) -> None:
        """Rewrites the lists in place: the prepared step computes the neurons of ``sets`` from now on, or all (None).

        Those left out are listed too, where they contribute.
        """
        for layer, kernel_block in enumerate(self.kernels):
            assert kernel_block.active is not None  # a sparse decoder's
            if sets is None:
                kernel_block.active.set(torch.arange(kernel_block.weights.d_ff, device=kernel_block.weights.device))
                continue
            left_out = None if sets.rest is None else (~sets.masks[layer][0]).nonzero().squeeze(1)
            kernel_block.active.set(sets.indices[layer], left_out)

    @torch.no_grad()
    def step(self, token: int) -> torch.Tensor:
        """Feeds one token; waits for the device once."""
        device = self.token.device
        with current_device(device):
            self.token.fill_(token)
            self.runner.run()
            finish(device)
        return self.logits

    def activations(self) -> list[torch.Tensor]:
        """[1, d_ff or fewer] per layer; of a sparse kernel block's, as many places as neurons are active."""
        if self.kernels:
            return [kernel_block.scratch.activations for kernel_block in self.kernels]
        return [seen.reshape(1, -1) for seen in self._seen]


class CudaGraphArm:
    """A decoder that has taken over a prompt; given back to the engine when the arm is gone."""

    def __init__(self, decoder: GraphDecoder, prefill: Prefill, weight_bytes: int, packing_ms: float = 0.0) -> None:
        self.decoder = decoder
        self.weight_bytes = weight_bytes
        self.packing_ms = packing_ms
        self.left = decoder.cache.positions - decoder.cache.fill(prefill.cache)

    def step(self, token: int) -> torch.Tensor:
        if self.left == 0:  # the replayed step would write beyond the cache
            raise IndexError(f"this arm was made for {self.decoder.cache.positions} tokens, and has had them")
        self.left -= 1
        return self.decoder.step(token)

    def activations(self) -> list[torch.Tensor]:
        return self.decoder.activations()

    def computed(self) -> list[int]:
        return [layer.shape[1] for layer in self.activations()]


class ListedArm(CudaGraphArm):
    """One whose neurons are listed on the device, so that it may be given others between two steps."""

    def __init__(self, decoder: GraphDecoder, prefill: Prefill, step_bytes: StepBytes) -> None:
        super().__init__(decoder, prefill, step_bytes.dense)
        self._step_bytes = step_bytes
        begin = now_ms(decoder.token.device)
        self.use(prefill.plan)
        self.packing_ms = now_ms(decoder.token.device) - begin

    def use(self, plan: Plan | None) -> None:
        """From the next step on it computes the sets of ``plan``, or all neurons; nothing is copied."""
        sets = None if plan is None else plan.sets
        self.decoder.list_neurons(sets)
        self.counts = list(self._step_bytes.widths) if sets is None else sets.counts()
        self.weight_bytes = self._step_bytes.sparse(self.counts, sets or StepTraits())

    def activations(self) -> list[torch.Tensor]:
        """Of the neurons computed exactly."""
        return [layer[:, :count] for layer, count in zip(super().activations(), self.counts, strict=True)]
