"""Both arms on the compiled CPU step; the prompt and the teacher-forced passes run in transformers."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...feedforward import FeedForward
from ...kernels.cpu import step as cpu
from ...kernels.cpu.mlp import Neurons
from ...kernels.cpu.threads import cores
from ...methods.base import ActiveSets, Selector
from ...methods.channels import ChannelRule
from ...methods.renewal import RenewedSets
from ...methods.token import TokenRule
from ...progress import Progress, Report, silent
from ..arm import Judgement, Prefill
from ..eager import EagerEngine
from ..refreshing import RefreshingArm
from .layout import Layout, read_layout, rope_tables
from .packing import Packed, Packer, neuron_bytes, places, rule_bytes

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ...models import LoadedModel

_packers: weakref.WeakKeyDictionary[PreTrainedModel, Packer] = weakref.WeakKeyDictionary()
# What has run once on a model: the step of these kinds of rule, and without one (None).
_ready: weakref.WeakKeyDictionary[PreTrainedModel, set[type[TokenRule] | None]] = weakref.WeakKeyDictionary()


class CpuStepEngine:
    """The compiled step, for decoders of the common layout. A model's arrays are made once for all races on it."""

    name = "compiled CPU step"

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm
        self.eager = EagerEngine(lm)

    @property
    def packer(self) -> Packer:
        if self.lm.model not in _packers:
            _packers[self.lm.model] = Packer(read_layout(self.lm))
        return _packers[self.lm.model]

    @property
    def layout(self) -> Layout:
        return self.packer.layout

    def warm_up(self, report: Report = silent, chooser: Selector | TokenRule | None = None) -> None:
        self.eager.warm_up(report)
        ready = _ready.setdefault(self.lm.model, set())
        if isinstance(chooser, TokenRule) and type(chooser) not in ready:
            report(Progress("Preparing the method's compiled step", 0, 0, "steps"))
            self._token_arm(chooser, 1).step(0)
            ready.add(type(chooser))
        if None in ready:
            return
        ready.add(None)
        report(Progress("Preparing the compiled step", 0, 0, "steps"))
        CpuStepArm(self.lm, self.layout, self.layout.neurons, cpu.Active(self.layout.first, None), 1).step(0)
        one = torch.zeros(1, dtype=torch.int64)
        self.packer.pack(ActiveSets((one,) * len(self.lm.blocks), tuple(block.d_ff for block in self.lm.blocks)))

    def prefill(self, ids: list[int], chooser: Selector | TokenRule) -> Prefill:
        return self.eager.prefill(ids, chooser)

    def prefills(self, ids: list[int], choosers: Sequence[Selector | TokenRule]) -> list[Prefill]:
        return self.eager.prefills(ids, choosers)

    def dense_arm(self, prefill: Prefill, room: int) -> CpuStepArm:
        everything = cpu.Active(self.layout.first, None)
        return CpuStepArm(self.lm, self.layout, self.layout.neurons, everything, prefill.tokens + room, prefill.cache)

    def sparse_arm(self, prefill: Prefill, room: int) -> CpuStepArm | RefreshingArm:
        positions = prefill.tokens + room
        if isinstance(prefill.plan, TokenRule):
            return self._token_arm(prefill.plan, positions, prefill.cache)
        arm = PackedArm(self.lm, self.packer, prefill.plan, positions, prefill.cache)
        return RefreshingArm(arm, prefill.plan) if isinstance(prefill.plan, RenewedSets) else arm

    def _token_arm(self, rule: TokenRule, positions: int, prompt_cache: Cache | None = None) -> CpuStepArm:
        if isinstance(rule, ChannelRule):
            return ChannelArm(self.lm, self.layout, rule, positions, prompt_cache)
        begin = time.perf_counter()
        neurons = self.packer.records(rule.order) if rule.whole else self.layout.neurons
        packing_ms = (time.perf_counter() - begin) * 1e3
        return RuleArm(self.lm, self.layout, neurons, rule, positions, prompt_cache, packing_ms)

    def in_place_arm(self, prefill: Prefill, room: int) -> CpuStepArm:
        """An arm that reads its active neurons wherever they lie among all, each in one piece; nothing is copied."""
        active = places(self.layout, prefill.active)
        return CpuStepArm(self.lm, self.layout, self.packer.records(), active, prefill.tokens + room, prefill.cache)

    def skips(self, chooser: Selector | TokenRule, block: FeedForward) -> bool:
        return not isinstance(chooser, TokenRule) or chooser.has_kernel

    def judge(self, prefill: Prefill, tokens: list[int]) -> Judgement:
        return self.eager.judge(prefill, tokens)


class CpuStepArm:
    """The decoder's arrays, some of its neurons, and a float32 KV cache for ``positions`` tokens."""

    def __init__(
        self,
        lm: LoadedModel,
        layout: Layout,
        neurons: Neurons,
        active: cpu.Active,
        positions: int,
        prompt_cache: Cache | None = None,
        packing_ms: float = 0.0,
        rule: Any = None,
    ) -> None:
        self.layout = layout
        self.neurons = neurons
        self.packing_ms = packing_ms
        self.rule = rule
        self._use(active)
        table: Any = lm.model.get_input_embeddings()
        self.embeddings = table.weight.numpy()
        self.embedding_scale = np.float32(getattr(table, "embed_scale", 1.0))  # Gemma's
        self.threads = torch.get_num_threads()
        self._computed = np.zeros((len(lm.blocks), self.threads), np.int64)
        self.cosines, self.sines = rope_tables(lm.model, positions)
        shape, layers = layout.shape, len(layout.shared.window)
        self.keys = np.zeros((layers, shape.kv_heads, positions, shape.head_dim), np.float32)
        self.values = np.zeros_like(self.keys)
        self.position = 0 if prompt_cache is None else self._fill(prompt_cache)
        self.logits = np.empty(len(layout.shared.head_scale), np.float32)

    @property
    def weight_bytes(self) -> int | None:
        return self.layout.shared_bytes + neuron_bytes(self.neurons, self.active)

    def _use(self, active: cpu.Active) -> None:
        self.active = active
        self.fired = np.empty(active.first[-1], np.float32)

    def step(self, token: int) -> torch.Tensor:
        if self.position == self.keys.shape[2]:  # compiled code would write beyond the cache
            raise IndexError(f"this arm was made for {self.position} tokens, and has had them")
        embedding = self.embeddings[token] * self.embedding_scale
        with cores(self.threads):
            cpu.step(
                embedding,
                self.position,
                self.threads,
                self.layout.shape,
                self.layout.shared,
                self.neurons,
                self.active,
                self.rule,
                self.cosines,
                self.sines,
                self.keys,
                self.values,
                self.fired,
                self._computed,
                self.logits,
            )
        self.position += 1
        return torch.from_numpy(self.logits)

    def activations(self) -> list[torch.Tensor]:
        fired = torch.from_numpy(self.fired)
        return [fired[None, begin:end] for begin, end in pairwise(self.active.first.tolist())]

    def computed(self) -> list[int]:
        return self._computed.sum(axis=1).tolist()

    def _fill(self, prompt_cache: Cache) -> int:
        """Copies the prompt's keys and values [1, kv_heads, T, head_dim] of every layer; returns T."""
        layers: Any = prompt_cache.layers
        for layer, cached in enumerate(layers):
            tokens = cached.keys.shape[2]
            self.keys[layer, :, :tokens] = cached.keys[0].numpy()
            self.values[layer, :, :tokens] = cached.values[0].numpy()
        return prompt_cache.get_seq_length()


class PackedArm(CpuStepArm):
    """An arm that reads copies of its active neurons, which lie side by side."""

    def __init__(self, lm: LoadedModel, packer: Packer, sets: ActiveSets, positions: int, prompt_cache: Cache) -> None:
        everything = cpu.Active(packer.layout.first, None)
        super().__init__(lm, packer.layout, packer.layout.neurons, everything, positions, prompt_cache)
        self.packer = packer
        self.copied_bytes = 0
        self._held: list[Packed] = []
        weakref.finalize(self, _take_back, packer, self._held)
        begin = time.perf_counter()
        self.use(sets)
        self.packing_ms = (time.perf_counter() - begin) * 1e3

    def use(self, sets: ActiveSets | None) -> None:
        """From the next step on it computes ``sets``, or all neurons; the copies it has serve until it gets others."""
        self.copied_bytes = 0
        if sets is None:
            self.neurons = self.layout.neurons
            self._use(cpu.Active(self.layout.first, None))
            return
        _take_back(self.packer, self._held)
        packed = self.packer.pack(sets)
        self._held.append(packed)
        self.neurons = packed.neurons
        self._use(packed.active)
        if packed.pages is not None:
            self.copied_bytes = neuron_bytes(packed.neurons, packed.active)


def _take_back(packer: Packer, held: list[Packed]) -> None:
    while held:
        packer.take_back(held.pop())


class RuleArm(CpuStepArm):
    """An arm whose kernel decides by ``plan`` which neurons to compute, and writes them down."""

    def __init__(
        self,
        lm: LoadedModel,
        layout: Layout,
        neurons: Neurons,
        plan: TokenRule,
        positions: int,
        prompt_cache: Cache | None = None,
        packing_ms: float = 0.0,
    ) -> None:
        scratch = np.zeros(layout.first[-1], np.int64)
        active = cpu.Active(layout.first, scratch)
        super().__init__(lm, layout, neurons, active, positions, prompt_cache, packing_ms, rule=plan.kernel)
        self.plan = plan
        self._began = self.position

    @property
    def weight_bytes(self) -> int | None:
        if self.position == self._began:
            return None
        return self.layout.shared_bytes + rule_bytes(self.neurons, self.plan, self._computed.sum())


class ChannelArm(CpuStepArm):
    """An arm whose kernel decides by ``plan`` which channels of every matrix to read, and counts them."""

    def __init__(
        self, lm: LoadedModel, layout: Layout, plan: ChannelRule, positions: int, prompt_cache: Cache | None = None
    ) -> None:
        active = cpu.Active(layout.first, np.zeros(layout.first[-1], np.int64))
        super().__init__(lm, layout, layout.neurons, active, positions, prompt_cache, rule=plan.kernel)
        self.plan = plan
        self._began = self.position

    @property
    def weight_bytes(self) -> int | None:
        if self.position == self._began:
            return None
        everything = self.layout.shared_bytes + neuron_bytes(self.neurons, self.active) + self.plan.extra_bytes
        return everything - sum(sum(self.plan.unread(layer, used)) for layer, used in enumerate(self._used()))

    def computed(self) -> list[int]:
        return [self.plan.neurons(layer, used) for layer, used in enumerate(self._used())]

    def _used(self) -> list[list[int]]:
        return self.plan.read_by(self.rule, self._computed.sum(axis=1))
