"""Both arms on a GPU: the transformers model with kernels for its blocks, its one-token step captured in a CUDA graph.

A decoder is a module tree of its own over the model's weights, with its own KV cache and active sets, all in fixed
memory. A captured step reads whatever that memory holds, so one graph serves every prompt and every active set: a race
rewrites the cache and the lists of neurons and captures nothing. The prompt and the teacher-forced passes run in
transformers as it is.

Both arms get the fastest way of running a block on this card (``kernels.gpu.choice``); where that is the vendor's GEMV
on packed copies, whose shapes change with the active set, the sparse arm is captured anew for each race, outside every
timing. Plans that renew their sets and those whose neurons left out contribute always run on the kernels, which do both
in place.

A step waits for the device once, at its end: ``Arm.step`` promises logits that are ready, and the race times it on the
host's clock, launch and wait included, for both arms alike.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from ...kernels.activations import activation_of
from ...kernels.gpu.blocks import Tiles
from ...kernels.gpu.choice import KernelChoice, choose_rest
from ...kernels.gpu.device import current_device, eager_runner, graph_runner, triton_runs
from ...kernels.gpu.linear import LinearTiles
from ...kernels.gpu.rest import MatricesWithRest
from ...methods.low_bit import Nf4Rest
from ...methods.policy import Policy
from ...methods.rest import Rest
from ...methods.sequence import SequencePolicy
from ...model.configuration import has_length_dependent_rope
from ...model.family import family_of
from ...model.feedforward import find_blocks
from ...support.progress import Progress, Report, silent
from ..arm import Arm, Prefill, RefreshingArm
from ..engine import Engine
from ..shared_model import now_ms, share_weights
from ..weight_bytes import StepBytes, bytes_per_step, kernel_bytes
from .decoder import CudaGraphArm, GraphDecoder, ListedArm, MakeRunner
from .kernel_blocks import BlockWeights, install_kernels, read_blocks, readable, use_usual_layout, with_rest
from .kernel_layers import measure_linears

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ...model.loading import LoadedModel

_ROOM = 256  # caches grow in steps of this many positions

Kind = Literal["dense", "sparse", "rest"]
"""Decoders: of all neurons; of those listed; of those listed, while the others contribute what their copy says."""

SomeArm = TypeVar("SomeArm", bound=CudaGraphArm)


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

    ``make_runner`` and the choices are replaced in tests, which run the same decoders on a CPU.
    """

    def __init__(
        self,
        lm: LoadedModel,
        make_runner: MakeRunner = graph_runner,
        choose: Callable[[BlockWeights], KernelChoice] = BlockWeights.choose,
        choose_rest: Callable[[Sequence[MatricesWithRest]], Tiles] = choose_rest,
        choose_linear: Callable[[PreTrainedModel], LinearTiles | None] = measure_linears,
    ) -> None:
        super().__init__(lm)
        self.make_runner = make_runner
        self.choose = choose
        self.choose_rest = choose_rest
        self.choose_linear = choose_linear
        self._in_place = False  # whether the sparse arm runs on the kernels whatever the choice
        self.name = "CUDA graph"  # how its steps really run and which way blocks go, once that is known

    @classmethod
    def runs(cls, policy: Policy) -> bool:
        rest = policy.rest if isinstance(policy, SequencePolicy) else None
        return not policy.token_level and (rest is None or isinstance(rest, Nf4Rest))

    def _count_bytes(self) -> StepBytes:
        return self.shared.step_bytes

    @property
    def shared(self) -> _Shared:
        if self.lm.model not in _models:
            with current_device(self.lm.device):
                blocks = read_blocks(self.lm)
                counted = kernel_bytes(self.lm.model, blocks.blocks, blocks.weights)
                linear = self.choose_linear(self.lm.model)
                _models[self.lm.model] = _Shared(blocks, self.choose(blocks), linear, counted)
        return _models[self.lm.model]

    def warm_up(self, report: Report = silent, policy: Policy | None = None) -> None:
        from transformers import DynamicCache

        super().warm_up(report, policy)
        rest = policy.rest if isinstance(policy, SequencePolicy) else None
        kinds: set[Kind] = {"dense", "sparse" if rest is None else "rest"}
        if self.lm.model in _models and kinds <= self.shared.made:
            return
        report(Progress("Measuring the card and capturing the step", 0, 0, "steps"))
        cache = DynamicCache()
        with torch.no_grad():
            self.lm.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.lm.device), past_key_values=cache)
        for kind in sorted(kinds - self.shared.made):
            self._give_back(kind, self._decoder(kind, cache, _ROOM, rest))

    def dense_arm(self, prefill: Prefill, room: int) -> CudaGraphArm:
        decoder = self._decoder("dense", prefill.cache, prefill.tokens + room)
        return self._returning("dense", CudaGraphArm(decoder, prefill, self.step_bytes.dense))

    def sparse_arm(self, prefill: Prefill, room: int) -> Arm:
        positions, plan = prefill.tokens + room, prefill.plan
        kind: Kind = "sparse" if plan.any_rest is None else "rest"
        if self.shared.choice.sparse == "kernels" or kind == "rest" or plan.steps is not None:
            self._in_place = True
            decoder = self._decoder(kind, prefill.cache, positions, plan.any_rest)
            arm = self._returning(kind, ListedArm(decoder, prefill, self.step_bytes))
            return arm if plan.steps is None else RefreshingArm(arm, plan, self.step_bytes)
        self._in_place = False
        begin = now_ms(self.lm.device)
        model = share_weights(self.lm.model)
        prefill.active.packed(find_blocks(model))
        packing_ms = now_ms(self.lm.device) - begin
        decoder = GraphDecoder(model, [], self.shared.linear, prefill.cache, _round_up(positions), self.make_runner)
        return CudaGraphArm(self._name_after(decoder), prefill, bytes_per_step(model), packing_ms)

    def judging_arm(self, prefill: Prefill, room: int) -> Arm | None:
        """Where down projections were quantised again, or bitsandbytes rounds activations and the kernels do not: that
        shows only in what the arms really compute.
        """
        return self.sparse_arm(prefill, room) if self.shared.blocks.changes or self.shared.blocks.int8 else None

    def _returning(self, kind: Kind, arm: SomeArm) -> SomeArm:
        """``arm``, whose decoder comes back when it is gone."""
        weakref.finalize(arm, self._give_back, kind, arm.decoder).atexit = False
        return arm

    def _decoder(self, kind: Kind, prompt_cache: Cache, positions: int, rest: Rest | None = None) -> GraphDecoder:
        """A spare one with room for ``positions`` tokens, or a new one; ``rest`` is what one of that kind reads."""
        spare = self.shared.spare[kind]
        if spare:
            decoder = spare.pop()  # if it is too short, nothing will ask for it again
            if decoder.cache.positions >= positions:
                return self._name_after(decoder)
        model = share_weights(self.lm.model)
        shared, dtype = self.shared, self.lm.model.dtype
        kernels = []
        if kind == "rest":
            weights, tiles = self._with_rest(rest)
            kernels = install_kernels(model, weights, tiles, dtype, sparse=True)
        elif kind == "sparse" or shared.choice.dense == "kernels":
            sparse = kind == "sparse"
            kernels = install_kernels(
                model, shared.blocks.weights, shared.choice.tiles(sparse=sparse), dtype, sparse=sparse
            )
        elif shared.choice.dense == "vendor, usual layout":
            use_usual_layout(model, shared.usual_downs)
        # bitsandbytes' int8 product, which attention uses, waits for the device: no graph can hold it.
        make_runner = eager_runner if shared.blocks.int8 else self.make_runner
        shared.made.add(kind)
        return self._name_after(
            GraphDecoder(model, kernels, shared.linear, prompt_cache, _round_up(positions), make_runner)
        )

    def _with_rest(self, rest: Rest | None) -> tuple[Sequence[MatricesWithRest], Tiles]:
        """The blocks with the copies of ``rest``, the same for all policies of a model, and tiles measured on them."""
        assert isinstance(rest, Nf4Rest)  # see ``runs``
        if self.shared.with_rest is None:
            weights = with_rest(self.shared.blocks, rest.copies)
            with current_device(self.lm.device):
                self.shared.with_rest = weights, self.choose_rest(weights)
        return self.shared.with_rest

    def _name_after(self, decoder: GraphDecoder) -> GraphDecoder:
        choice = self.shared.choice
        way = dataclasses.replace(choice, sparse="kernels") if self._in_place else choice
        self.name = f"{decoder.runner.name} ({way})"
        return decoder

    def _give_back(self, kind: Kind, decoder: GraphDecoder) -> None:
        """For when no arm uses ``decoder`` any more; one spare of each kind is kept."""
        self.shared.spare[kind] = [decoder]


class _Shared:
    """What all engines of one model share."""

    def __init__(
        self, blocks: BlockWeights, choice: KernelChoice, linear: LinearTiles | None, step_bytes: StepBytes
    ) -> None:
        self.blocks = blocks
        self.choice = choice
        self.linear = linear
        self.step_bytes = step_bytes
        self.spare: dict[Kind, list[GraphDecoder]] = {"dense": [], "sparse": [], "rest": []}
        self.made: set[Kind] = set()  # of which kinds there has been a decoder
        self.with_rest: tuple[Sequence[MatricesWithRest], Tiles] | None = None

    @cached_property
    def usual_downs(self) -> list[torch.Tensor]:
        """Every down projection contiguous as [d, d_ff], as transformers has it; copies."""
        return [block.down.weight.detach().contiguous() for block in self.blocks.blocks]


_models: weakref.WeakKeyDictionary[PreTrainedModel, _Shared] = weakref.WeakKeyDictionary()


def _round_up(positions: int) -> int:
    return -(-positions // _ROOM) * _ROOM
