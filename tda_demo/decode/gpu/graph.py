"""Both arms on a GPU: the transformers model with kernels for its blocks, its one-token step captured in a CUDA graph.

A decoder is a module tree of its own over the model's weights, with its own KV cache and active sets, all in fixed
memory. A captured step reads whatever that memory holds, so one graph serves every prompt and every active set: a race
rewrites the cache and the lists of neurons and captures nothing. The prompt and the teacher-forced passes run in
transformers as it is.

Both arms get the fastest way of running a block on this card (``kernels.gpu.choice``); where that is the vendor's GEMV
on packed copies, whose shapes change with the active set, the sparse arm is captured anew for each race, outside every
timing.

A step waits for the device once, at its end: ``Arm.step`` promises logits that are ready, and the race times it on the
host's clock, launch and wait included, for both arms alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ...kernels.activations import activation_of
from ...kernels.gpu.choice import KernelChoice
from ...kernels.gpu.device import current_device, eager_runner, graph_runner, triton_runs
from ...methods.policy import Policy
from ...model.configuration import has_length_dependent_rope
from ...model.family import family_of
from ...model.feedforward import find_blocks
from ...support.progress import Progress, Report, silent
from ..arm import Prefill
from ..engine import Engine
from ..shared_model import now_ms, share_weights
from ..weight_bytes import StepBytes, bytes_per_step, kernel_bytes
from .decoder import CudaGraphArm, GraphDecoder, MakeRunner
from .kernel_blocks import BlockWeights, install_kernels, read_blocks, readable, use_usual_layout

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ...model.loading import LoadedModel

_ROOM = 256  # caches grow in steps of this many positions


def can_decode(lm: LoadedModel) -> bool:
    """Whether this engine runs ``lm``: on one CUDA device, where Triton works, in a family and precision it knows."""
    return lm.device.type == "cuda" and supported(lm) and triton_runs(lm.device)


def supported(lm: LoadedModel) -> bool:
    """``can_decode`` without the card, which tests do without."""
    config = lm.model.config
    return (
        family_of(lm.model).text_only
        and activation_of(config) is not None
        and not has_length_dependent_rope(config)  # choosing its tables waits for the device
        and len(set((getattr(lm.model, "hf_device_map", None) or {"": 0}).values())) == 1
        and readable(lm)
    )


class CudaGraphEngine(Engine):
    """The captured step. Weights by neuron, the measured choice and spare decoders are kept for all races on a model.

    ``make_runner`` and ``choose`` are replaced in tests, which run the same decoders on a CPU.
    """

    def __init__(
        self,
        lm: LoadedModel,
        make_runner: MakeRunner = graph_runner,
        choose: Callable[[BlockWeights], KernelChoice] = BlockWeights.choose,
    ) -> None:
        super().__init__(lm)
        self.make_runner = make_runner
        self.choose = choose
        self.name = "CUDA graph"  # how its steps really run and which way blocks go, once that is known

    @classmethod
    def runs(cls, policy: Policy) -> bool:
        return policy.settles and not policy.rest_bytes

    def _count_bytes(self) -> StepBytes:
        return self.shared.step_bytes

    @property
    def shared(self) -> _Shared:
        if self.lm.model not in _models:
            with current_device(self.lm.device):
                blocks = read_blocks(self.lm)
                counted = kernel_bytes(self.lm.model, blocks.blocks, blocks.weights)
                _models[self.lm.model] = _Shared(blocks, self.choose(blocks), counted)
        return _models[self.lm.model]

    def warm_up(self, report: Report = silent, policy: Policy | None = None) -> None:
        from transformers import DynamicCache

        super().warm_up(report, policy)
        if self.lm.model in _models:
            return
        report(Progress("Measuring the card and capturing the step", 0, 0, "steps"))
        cache = DynamicCache()
        with torch.no_grad():
            self.lm.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.lm.device), past_key_values=cache)
        for sparse in (False, True):
            self._give_back(sparse, self._decoder(sparse, cache, _ROOM))

    def dense_arm(self, prefill: Prefill, room: int) -> CudaGraphArm:
        return self._arm(self._decoder(False, prefill.cache, prefill.tokens + room), prefill, sparse=False)

    def sparse_arm(self, prefill: Prefill, room: int) -> CudaGraphArm:
        positions = prefill.tokens + room
        begin = now_ms(self.lm.device)
        if self.shared.choice.sparse == "kernels":
            decoder = self._decoder(True, prefill.cache, positions)
            begin = now_ms(self.lm.device)  # a capture, if there was one, is not packing
            decoder.set_active(prefill.active)
            packing_ms = now_ms(self.lm.device) - begin
            return self._arm(decoder, prefill, sparse=True, packing_ms=packing_ms)
        model = share_weights(self.lm.model)
        prefill.active.packed(find_blocks(model))
        packing_ms = now_ms(self.lm.device) - begin
        decoder = GraphDecoder(model, [], prefill.cache, _round_up(positions), self.make_runner)
        return CudaGraphArm(self._name_after(decoder), prefill, bytes_per_step(model), packing_ms)

    def sparse_logits(self, prefill: Prefill, tokens: list[int]) -> torch.Tensor | None:
        """Where down projections were quantised again, or bitsandbytes rounds activations and the kernels do not: that
        shows only in what the sparse arm really computes.
        """
        if not (self.shared.blocks.changes or self.shared.blocks.int8):
            return None
        arm = self.sparse_arm(prefill, len(tokens))
        return torch.stack([arm.step(token).clone() for token in tokens])

    def _arm(self, decoder: GraphDecoder, prefill: Prefill, *, sparse: bool, packing_ms: float = 0.0) -> CudaGraphArm:
        read = self.step_bytes.sparse(prefill.active.counts(), prefill.plan) if sparse else self.step_bytes.dense
        arm = CudaGraphArm(decoder, prefill, read, packing_ms)
        weakref.finalize(arm, self._give_back, sparse, decoder).atexit = False
        return arm

    def _decoder(self, sparse: bool, prompt_cache: Cache, positions: int) -> GraphDecoder:
        """A spare one with room for ``positions`` tokens, or a new one."""
        spare = self.shared.spare[sparse]
        if spare:
            decoder = spare.pop()  # if it is too short, nothing will ask for it again
            if decoder.cache.positions >= positions:
                return self._name_after(decoder)
        model = share_weights(self.lm.model)
        shared = self.shared
        kernels = []
        if sparse or shared.choice.dense == "kernels":
            tiles = shared.choice.tiles(sparse=sparse)
            kernels = install_kernels(model, shared.blocks.weights, tiles, self.lm.model.dtype, sparse=sparse)
        elif shared.choice.dense == "vendor, usual layout":
            use_usual_layout(model, shared.usual_downs)
        # bitsandbytes' int8 product, which attention uses, waits for the device: no graph can hold it.
        make_runner = eager_runner if shared.blocks.int8 else self.make_runner
        return self._name_after(GraphDecoder(model, kernels, prompt_cache, _round_up(positions), make_runner))

    def _name_after(self, decoder: GraphDecoder) -> GraphDecoder:
        self.name = f"{decoder.runner.name} ({self.shared.choice})"
        return decoder

    def _give_back(self, sparse: bool, decoder: GraphDecoder) -> None:
        """For when no arm uses ``decoder`` any more; one spare of each kind is kept."""
        self.shared.spare[sparse] = [decoder]


class _Shared:
    """What all engines of one model share."""

    def __init__(self, blocks: BlockWeights, choice: KernelChoice, step_bytes: StepBytes) -> None:
        self.blocks = blocks
        self.choice = choice
        self.step_bytes = step_bytes
        self.spare: dict[bool, list[GraphDecoder]] = {False: [], True: []}

    @cached_property
    def usual_downs(self) -> list[torch.Tensor]:
        """Every down projection contiguous as [d, d_ff], as transformers has it; copies."""
        return [block.down.weight.detach().contiguous() for block in self.blocks.blocks]


_models: weakref.WeakKeyDictionary[PreTrainedModel, _Shared] = weakref.WeakKeyDictionary()


def _round_up(positions: int) -> int:
    return -(-positions // _ROOM) * _ROOM
