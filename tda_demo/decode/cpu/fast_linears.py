"""Both arms on the transformers model, any family, with its batch-1 linears compiled; for CPUs.

What lies between the linears (norms, attention, activation functions) stays transformers' own code. The prompt and the
teacher-forced passes run in transformers alone.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...feedforward import FeedForward, find_blocks
from ...kernels.cpu.linear import NeuronMajor, RowMajor
from ...kernels.cpu.threads import cores
from ...methods.base import ActiveSets, Selector
from ...methods.renewal import RenewedSets
from ...methods.token import TokenRule
from ...precision import head_format
from ...progress import Progress, Report, silent
from ..arm import Judgement, Prefill
from ..eager import EagerArm, EagerEngine
from ..refreshing import RefreshingArm
from ..trees import share_weights

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ...models import LoadedModel

_models: weakref.WeakKeyDictionary[PreTrainedModel, Linears] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Linears:
    """The compact matrices a step reads, by module name, and the bytes of what else it reads (norms, embeddings)."""

    matrices: dict[str, RowMajor | NeuronMajor]
    other_bytes: int

    @property
    def nbytes(self) -> int:
        return self.other_bytes + sum(matrix.nbytes for matrix in self.matrices.values())


class FastLinearsEngine:
    """The transformers model with compiled linears, for any family on a CPU."""

    name = "transformers with compiled linears"

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm
        self.eager = EagerEngine(lm)

    @property
    def linears(self) -> Linears:
        """The model's compact matrices, made once for all races on it."""
        if self.lm.model not in _models:
            _models[self.lm.model] = read_linears(self.lm)
        return _models[self.lm.model]

    def warm_up(self, report: Report = silent, chooser: Selector | TokenRule | None = None) -> None:
        from transformers import DynamicCache

        self.eager.warm_up(report)
        report(Progress("Preparing the compiled linears", 0, 0, "steps"))
        FastLinearsArm(self.lm, self.linears, DynamicCache()).step(0)

    def prefill(self, ids: list[int], chooser: Selector | TokenRule) -> Prefill:
        return self.eager.prefill(ids, chooser)

    def prefills(self, ids: list[int], choosers: Sequence[Selector | TokenRule]) -> list[Prefill]:
        return self.eager.prefills(ids, choosers)

    def dense_arm(self, prefill: Prefill, room: int) -> FastLinearsArm:
        return FastLinearsArm(self.lm, self.linears, prefill.cache)

    def sparse_arm(self, prefill: Prefill, room: int) -> FastLinearsArm | RefreshingArm:
        linears = self.linears
        if isinstance(prefill.plan, TokenRule):
            return FastLinearsArm(self.lm, linears, prefill.cache, rule=prefill.plan)
        arm = FastLinearsArm(self.lm, linears, prefill.cache)
        begin = time.perf_counter()
        arm.use(prefill.plan)
        arm.packing_ms = (time.perf_counter() - begin) * 1e3
        return RefreshingArm(arm, prefill.plan) if isinstance(prefill.plan, RenewedSets) else arm

    def skips(self, chooser: Selector | TokenRule, block: FeedForward) -> bool:
        return not isinstance(chooser, TokenRule)

    def judge(self, prefill: Prefill, tokens: list[int]) -> Judgement:
        return self.eager.judge(prefill, tokens)


class FastLinearsArm:
    """A transformers model of its own over the shared weights, its linears replaced, with a KV cache of its own."""

    def __init__(
        self,
        lm: LoadedModel,
        linears: Linears,
        prompt_cache: Cache,
        rule: TokenRule | None = None,
    ) -> None:
        model = share_weights(lm.model)
        install(linears, model)
        self.linears, self.model = linears, model
        self.eager = EagerArm(model, lm, prompt_cache, rule=rule)
        self.threads = torch.get_num_threads()
        self.weight_bytes = linears.nbytes + (rule.extra_bytes if rule else 0)
        self.packing_ms = 0.0
        self.copied_bytes = 0

    def use(self, sets: ActiveSets | None) -> None:
        """From the next step on it computes packed copies of ``sets``, or all neurons."""
        linears = self.linears if sets is None else pack(self.linears, self.model, sets)
        install(linears, self.model)
        self.weight_bytes = linears.nbytes
        self.copied_bytes = sum(
            matrix.neuron_bytes
            for name, matrix in linears.matrices.items()
            if matrix is not self.linears.matrices[name]
        )

    def step(self, token: int) -> torch.Tensor:
        with cores(self.threads):
            return self.eager.step(token)

    def activations(self) -> list[torch.Tensor]:
        return self.eager.activations()

    def computed(self) -> list[int]:
        return self.eager.computed()


def read_linears(lm: LoadedModel) -> Linears:
    """The compact matrices of ``lm``, whose weights are float32 values that ``lm.precision`` can hold."""
    downs = {block.down for block in lm.blocks}
    head = lm.model.get_output_embeddings()
    matrices: dict[str, RowMajor | NeuronMajor] = {}
    other_bytes = 0
    for name, module in read_by_a_step(lm):
        if isinstance(module, nn.Linear):
            layout = NeuronMajor if module in downs else RowMajor
            matrices[name] = layout.of(module, head_format(lm.precision) if module is head else lm.precision)
        elif isinstance(module, nn.Embedding):
            other_bytes += module.weight[0].nbytes
        else:
            other_bytes += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    return Linears(matrices, other_bytes)


def read_by_a_step(lm: LoadedModel) -> list[tuple[str, nn.Module]]:
    """The modules that one token runs through, with their names: a multimodal model has others too."""
    from transformers import DynamicCache

    model = share_weights(lm.model)
    ran: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.add(name))
    EagerArm(model, lm, DynamicCache()).step(0)
    return [(name, module) for name, module in lm.model.named_modules() if name in ran]


def pack(linears: Linears, model: PreTrainedModel, active: ActiveSets) -> Linears:
    """The same linears, those of blocks that do not keep all their neurons as copies of the active ones."""
    names = {module: name for name, module in model.named_modules()}
    packed = dict(linears.matrices)
    for block, indices in zip(find_blocks(model), active.indices, strict=True):
        if len(indices) == block.d_ff:
            continue
        for linear in block.linears:
            chosen = indices if linear is block.down else block.rows_of(linear, indices)
            packed[names[linear]] = packed[names[linear]].take(chosen.numpy())
    return Linears(packed, linears.other_bytes)


class CompiledLinear(nn.Linear):
    """A linear that computes a single row with ``matrix``, and several (no step has them in a block) as ever."""

    matrix: RowMajor | NeuronMajor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.shape[:-1]
        if rows.numel() != 1:
            return super().forward(input)
        output = self.matrix(input.reshape(-1))
        return output.reshape(*rows, len(output))


def install(linears: Linears, model: PreTrainedModel) -> None:
    """Turns the linears of ``model`` into compiled ones, in place."""
    for name, matrix in linears.matrices.items():
        linear: Any = model.get_submodule(name)
        linear.__class__ = CompiledLinear
        linear.matrix = matrix
