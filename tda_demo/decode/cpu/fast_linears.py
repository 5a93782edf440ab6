"""Both arms on the transformers model, any family, with its batch-1 linears compiled; for CPUs.

What lies between the linears (norms, attention, activation functions) stays transformers' own code. The prompt and the
teacher-forced passes run in transformers alone.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...kernels.cpu import cores
from ...kernels.cpu.linear import NeuronMajor, RowMajor
from ...methods.plan import ActiveSets, Plan, UseObserver
from ...methods.policy import Policy
from ...methods.rest import add_rest
from ...methods.sequence import SequencePolicy
from ...model.feedforward import find_blocks
from ...model.precision import head_format
from ...support.progress import Progress, Report, silent
from ..arm import Prefill
from ..eager import EagerArm, EagerEngine
from ..shared_model import modules_of_a_step, share_weights
from ..weight_bytes import StepBytes, stored_bytes
from .rest_blocks import packed_rest

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ...model.loading import LoadedModel

_models: weakref.WeakKeyDictionary[PreTrainedModel, CompactMatrices] = weakref.WeakKeyDictionary()

CompactMatrices = dict[str, RowMajor | NeuronMajor]
"""The compact matrices a step reads, by module name."""


class FastLinearsEngine(EagerEngine):
    """The transformers model with compiled linears, for any family on a CPU."""

    name = "transformers with compiled linears"

    @property
    def linears(self) -> CompactMatrices:
        """The model's compact matrices, made once for all races on it."""
        if self.lm.model not in _models:
            _models[self.lm.model] = encode_linears(self.lm)
        return _models[self.lm.model]

    def _count_bytes(self) -> StepBytes:
        return stored_bytes(self.lm, runs_kernels=False)

    def warm_up(self, report: Report = silent, policy: Policy | None = None) -> None:
        from transformers import DynamicCache

        super().warm_up(report, policy)
        report(Progress("Preparing the compiled linears", 0, 0, "steps"))
        arm = FastLinearsArm(self.lm, self.linears, DynamicCache(), self.step_bytes)
        if isinstance(policy, SequencePolicy) and policy.rest is not None:
            arm.use(ActiveSets.of([torch.arange(block.d_ff) == 0 for block in self.lm.blocks], policy.rest))
        arm.step(0)

    def dense_arm(self, prefill: Prefill, room: int) -> FastLinearsArm:
        return FastLinearsArm(self.lm, self.linears, prefill.cache, self.step_bytes)


class FastLinearsArm(EagerArm):
    """A transformers model of its own over the shared weights, its linears replaced, with a KV cache of its own."""

    def __init__(self, lm: LoadedModel, linears: CompactMatrices, prompt_cache: Cache, step_bytes: StepBytes) -> None:
        model = share_weights(lm.model)
        install_linears(linears, model)
        self.linears = linears
        self.threads = torch.get_num_threads()
        super().__init__(model, lm, prompt_cache, step_bytes)

    def _install(self, plan: Plan, see: UseObserver) -> ExitStack:
        if plan.sets is None:
            return plan.on(self.blocks, see)
        sets, restoration = plan.sets, ExitStack()
        install_linears(pack_linears(self.linears, self.model, sets), self.model)
        restoration.callback(install_linears, self.linears, self.model)
        rest = packed_rest(sets, self.model.config.get_text_config())
        for block, mask in zip(self.blocks, sets.masks, strict=True):
            restoration.enter_context(add_rest(block, mask, rest))
        return restoration

    def step(self, token: int) -> torch.Tensor:
        with cores(self.threads):
            return super().step(token)


def encode_linears(lm: LoadedModel) -> CompactMatrices:
    """The compact matrices of ``lm``, whose weights are float32 values that ``lm.precision`` can hold."""
    downs = {block.down for block in lm.blocks}
    head = lm.model.get_output_embeddings()
    matrices: CompactMatrices = {}
    for name, module in modules_of_a_step(lm):
        if isinstance(module, nn.Linear):
            layout = NeuronMajor if module in downs else RowMajor
            matrices[name] = layout.of(module, head_format(lm.precision) if module is head else lm.precision)
    return matrices


def pack_linears(linears: CompactMatrices, model: PreTrainedModel, active: ActiveSets) -> CompactMatrices:
    """The same linears, those of blocks that do not keep all their neurons as copies of the active ones."""
    names = {module: name for name, module in model.named_modules()}
    packed = dict(linears)
    for block, indices in zip(find_blocks(model), active.indices, strict=True):
        if len(indices) == block.d_ff:
            continue
        for linear in block.linears:
            chosen = indices if linear is block.down else block.rows_of(linear, indices)
            packed[names[linear]] = packed[names[linear]].take(chosen.numpy())
    return packed


class CompiledLinear(nn.Linear):
    """A linear that computes a single row with ``matrix``, and several (no step has them in a block) as ever."""

    matrix: RowMajor | NeuronMajor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.shape[:-1]
        if rows.numel() != 1:
            return super().forward(input)
        output = self.matrix(input.reshape(-1))
        return output.reshape(*rows, len(output))


def install_linears(linears: CompactMatrices, model: PreTrainedModel) -> None:
    """Turns the linears of ``model`` into compiled ones, in place."""
    for name, matrix in linears.items():
        linear: Any = model.get_submodule(name)
        linear.__class__ = CompiledLinear
        linear.matrix = matrix
