"""Both arms on the compiled CPU step; the prompt, too, is read by compiled layers where they know its formats.

Other prompts, and the teacher-forced passes, run in transformers. Where the model holds codes only (``model.stored``),
they are the step's own arrays that transformers multiplies with.
"""

from __future__ import annotations

import time
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch

from ...kernels.cpu import most_threads, turn
from ...kernels.cpu import step as cpu
from ...kernels.cpu.launch import ParallelCall, run_at_once
from ...kernels.cpu.layer import Neurons
from ...methods.plan import ActiveSets, Plan, StepTraits
from ...methods.policy import Policy
from ...methods.sequence import SequencePolicy
from ...methods.token import StepUse, TokenPolicy
from ...support.progress import Progress, Report, silent
from ..arm import Arm, Prefill, RefreshingArm
from ..engine import Engine, See
from ..weight_bytes import StepBytes, fewer_stored_bytes, stored_bytes
from .compile_ahead import wait_for_compiling
from .embedding import TokenEmbedding
from .layout import Layout, read_layout, rope_tables
from .packing import PackedNeurons, Packer, in_place
from .prompt_cache import PromptCache, number_type, prompt_of
from .prompt_pass import read_prompt, reads_prompts

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


_packers: weakref.WeakKeyDictionary[PreTrainedModel, Packer] = weakref.WeakKeyDictionary()
# What has run once on a model: the step of these kinds of policy or rest, and without one (None).
_ready: weakref.WeakKeyDictionary[PreTrainedModel, set[type | None]] = weakref.WeakKeyDictionary()


class CpuStepEngine(Engine):
    """The compiled step, for decoders of the common layout. A model's arrays are made once for all races on it."""

    name = "compiled CPU step"

    @classmethod
    def runs(cls, policy: Policy) -> bool:
        return policy.has_kernel or not policy.token_level

    @property
    def packer(self) -> Packer:
        if self.lm.model not in _packers:
            _packers[self.lm.model] = Packer(read_layout(self.lm))
        return _packers[self.lm.model]

    @property
    def layout(self) -> Layout:
        return self.packer.layout

    def _count_bytes(self) -> StepBytes:
        return stored_bytes(self.lm, runs_kernels=True)

    @property
    def fewer_bits(self) -> dict[str, int]:
        return fewer_stored_bytes(self.lm)

    def warm_up(self, report: Report = silent, policy: Policy | None = None) -> None:
        ready = _ready.setdefault(self.lm.model, set())
        kind = _step_of(policy)
        if kind is not None and kind not in ready:
            report(Progress("Preparing the method's compiled step", 0, 0, "steps"))
            (TokenArm(self, policy, 1) if isinstance(policy, TokenPolicy) else self._resting_arm(policy)).step(0)
            ready.add(kind)
        if None in ready:
            return
        _ = self.fewer_bits  # which every race tells in the end
        report(Progress("Preparing the compiled step", 0, 0, "steps"))
        CpuStepArm(self, self.layout.neurons, self.layout.everything, 1).step(0)
        first_neuron = torch.zeros(1, dtype=torch.int64)
        self.packer.arrange([first_neuron] * len(self.lm.blocks))
        wait_for_compiling(report)
        self.warm_up_reading(report)
        ready.add(None)

    def warm_up_reading(self, report: Report = silent) -> None:
        """The part of ``warm_up`` that reading a prompt needs."""
        super().warm_up(report)  # judges of a race need transformers' pass even where prompts do not
        if reads_prompts(self.layout):
            report(Progress("Preparing the compiled layers", 0, 0, "steps"))
            token = min(self.lm.eos_ids, default=0)
            read_prompt(self.lm, self.layout, [token] * 8, lambda _block, _x, _activations: None)

    def _read(self, ids: list[int], see: See) -> tuple[torch.Tensor, Cache, float]:
        if not reads_prompts(self.layout):
            return super()._read(ids, see)
        begin = time.perf_counter()
        logits, cache = read_prompt(self.lm, self.layout, ids, see)
        return logits, cache, (time.perf_counter() - begin) * 1e3

    def _resting_arm(self, policy: Policy | None) -> PackedArm:
        """One neuron active in every layer, and the rest of ``policy``: its copies, too, have touched their memory."""
        masks = [torch.arange(block.d_ff) == 0 for block in self.lm.blocks]
        return PackedArm(self, ActiveSets.of(masks, cast(SequencePolicy, policy).rest), 1)

    def dense_arm(self, prefill: Prefill, room: int) -> CpuStepArm:
        positions = prefill.tokens + room
        return CpuStepArm(self, self.layout.neurons, self.layout.everything, positions, prefill.cache).prepared()

    def sparse_arm(self, prefill: Prefill, room: int) -> Arm:
        positions, plan = prefill.tokens + room, prefill.plan
        if isinstance(plan, TokenPolicy):
            return TokenArm(self, plan, positions, prefill.cache).prepared()
        arm = PackedArm(self, plan, positions, prefill.cache).prepared()
        return arm if plan.steps is None else RefreshingArm(arm, plan, self.step_bytes)

    def judging_arm(self, prefill: Prefill, room: int) -> Arm:
        return self.sparse_arm(prefill, room)

    def in_place_arm(self, prefill: Prefill, room: int) -> CpuStepArm:
        """An arm that reads its active neurons wherever they lie among all, each in one piece; nothing is copied."""
        active = in_place(self.layout, prefill.active)
        return CpuStepArm(self, self.packer.records(), active, prefill.tokens + room, prefill.cache)


def _step_of(policy: Policy | None) -> type | None:
    """What a compiled step of ``policy`` is told apart by; None of the one that all have."""
    if isinstance(policy, TokenPolicy):
        return type(policy)
    return type(policy.rest) if isinstance(policy, SequencePolicy) and policy.rest is not None else None


class CpuStepArm:
    """The decoder's arrays, some of its neurons, and a KV cache: for ``positions`` tokens, the prompt's, which
    arms share, included.
    """

    _take: ParallelCall | None

    def __init__(
        self,
        engine: CpuStepEngine,
        neurons: Neurons,
        active: cpu.Active,
        positions: int,
        prompt_cache: Cache | None = None,
        kernel: Any = None,
    ) -> None:
        lm, layout = engine.lm, engine.layout
        self.layout = layout
        self.neurons = neurons
        self.packing_ms = 0.0
        self.kernel = kernel
        self._traits = StepTraits()
        self.step_bytes = engine.step_bytes
        self._use(active)
        self._embedding = TokenEmbedding(lm.model.get_input_embeddings())
        self.threads = min(torch.get_num_threads(), most_threads())
        self._turn = turn(self.threads)
        self._position = np.zeros(1, np.int64)
        self._computed = np.zeros((len(lm.blocks), self.threads), np.int64)
        self.cosines, self.sines = rope_tables(lm.model, positions)
        shape, layers = layout.shape, len(layout.shared.window)
        kind = number_type(lm.precision)
        no_prompt = np.zeros((layers, shape.kv_heads, 0, shape.head_dim), kind)
        self.prompt = PromptCache(no_prompt, no_prompt) if prompt_cache is None else prompt_of(prompt_cache, kind)
        self.position, self.positions = self.prompt.tokens, positions
        self.keys = np.zeros((layers, shape.kv_heads, positions - self.position, shape.head_dim), kind)
        self.values = np.zeros_like(self.keys)
        self.logits = np.empty(len(layout.shared.head_scale), np.float32)
        self._told = torch.from_numpy(self.logits)

    @property
    def weight_bytes(self) -> int | None:
        return self.step_bytes.sparse(np.diff(self.active.first).tolist(), self._traits)

    def _use(self, active: cpu.Active) -> None:
        self.active = active
        self.fired = np.empty(active.first[-1], np.float32)
        self._take = None  # until the next step, which finds the arrays it is to use

    def step(self, token: int) -> torch.Tensor:
        if self.position == self.positions:  # compiled code would write beyond the cache
            raise IndexError(f"this arm was made for {self.position} tokens, and has had them")
        self._position[0] = self.position
        self._embedding.use(token)
        with self._turn:
            run_at_once(self._take or self._prepare())
        self.position += 1
        return self._told

    def prepared(self) -> Self:
        """Itself, once what a first step would have to do alone is done: 2 ms that no step is charged for."""
        with self._turn:
            self._prepare()
        return self

    def _prepare(self) -> ParallelCall:
        shape, width, places = self.layout.shape, len(self.layout.shared.final_norm), len(self.fired)
        step = cpu.Step(
            embedding=self._embedding.arrays,
            shape=shape,
            shared=self.layout.shared,
            neurons=self.neurons,
            active=self.active,
            rule=self.kernel,
            cache=cpu.Cache(
                position=self._position,
                cosines=self.cosines,
                sines=self.sines,
                prompt_keys=self.prompt.keys,
                prompt_values=self.prompt.values,
                keys=self.keys,
                values=self.values,
            ),
            activations=self.fired,
            computed=self._computed,
            logits=self.logits,
            scratch=cpu.Scratch.of(shape, width, self.threads, places, self.positions),
        )
        self._take = ParallelCall(cpu.take_step, step, self.threads)
        return self._take

    def activations(self) -> list[torch.Tensor]:
        fired = torch.from_numpy(self.fired)
        return [fired[None, begin:end] for begin, end in pairwise(self.active.first.tolist())]

    def computed(self) -> list[int]:
        return self._computed.sum(axis=1).tolist()


class PackedArm(CpuStepArm):
    """An arm that reads copies of its active neurons, which lie side by side, and low-bit ones of a plan's rest."""

    def __init__(self, engine: CpuStepEngine, plan: Plan, positions: int, prompt_cache: Cache | None = None) -> None:
        layout = engine.layout
        super().__init__(engine, layout.neurons, layout.everything, positions, prompt_cache)
        self.packer = engine.packer
        self._packed: PackedNeurons | None = None
        begin = time.perf_counter()
        self.use(plan)
        self.packing_ms = (time.perf_counter() - begin) * 1e3

    def use(self, plan: Plan | None) -> None:
        """From the next step on it computes the sets of ``plan``, or all neurons; copies serve until it gets others."""
        if plan is None or plan.sets is None:
            self.neurons, self.kernel, self._traits = self.layout.neurons, None, StepTraits()
            self._use(self.layout.everything)
            return
        self._packed = None  # whose memory may serve the next
        self._packed = packed = self.packer.pack(plan.sets)
        self.neurons, self.kernel, self._traits = packed.neurons, packed.rest, plan
        self._use(packed.active)


class TokenArm(CpuStepArm):
    """An arm whose kernel decides by ``plan``, at every token, what to compute, and writes down how much that was."""

    def __init__(
        self, engine: CpuStepEngine, plan: TokenPolicy, positions: int, prompt_cache: Cache | None = None
    ) -> None:
        begin = time.perf_counter()
        neurons = engine.packer.records(plan.order) if plan.whole else engine.layout.neurons
        packing_ms = (time.perf_counter() - begin) * 1e3
        first = engine.layout.first
        active = cpu.Active(first, np.zeros(first[-1], np.int64))  # which neurons, for the kernel to fill in
        super().__init__(engine, neurons, active, positions, prompt_cache, plan.kernel)
        self.packing_ms = packing_ms if plan.whole else 0.0
        self.plan = plan
        self._began = self.position

    @property
    def weight_bytes(self) -> int | None:
        if self.position == self._began:
            return None
        used = self._used()
        return round(self.step_bytes.read(self.plan, used.neurons, used.unread or ()).bytes)

    def computed(self) -> list[int]:
        return self._used().neurons

    def _used(self) -> StepUse:
        return self.plan.step_use(self.kernel, self._computed.sum(axis=1))
