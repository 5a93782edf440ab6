"""The transformers model itself, any family. The sparse arm is the same modules holding fewer neurons."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..feedforward import FeedForward, find_blocks, observed
from ..methods.base import ActiveSets, Plan, Selector
from ..methods.renewal import Choosing, RenewedSets
from ..methods.token import TokenRule, between
from ..progress import Report, silent
from .arm import Judgement, Prefill
from .refreshing import RefreshingArm
from .trees import bytes_per_step, share_weights

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ..models import LoadedModel


Lack = Callable[[FeedForward, torch.Tensor, torch.Tensor], torch.Tensor]
"""The activations [T, d_ff] that a plan leaves of a block's input [T, d] and dense activations [T, d_ff]."""


class EagerEngine:
    """Plain transformers, with torch's own kernels in both arms."""

    name = "transformers eager"

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm

    def warm_up(self, report: Report = silent, chooser: Selector | TokenRule | None = None) -> None:
        from transformers import DynamicCache

        token = min(self.lm.eos_ids, default=0)
        with torch.inference_mode():
            _forward(self.lm.model, DynamicCache(config=self.lm.model.config), [token] * 8, self.lm.device)

    def prefill(self, ids: list[int], chooser: Selector | TokenRule) -> Prefill:
        return self.prefills(ids, [chooser])[0]

    @torch.inference_mode()
    def prefills(self, ids: list[int], choosers: Sequence[Selector | TokenRule]) -> list[Prefill]:
        from transformers import DynamicCache

        model = share_weights(self.lm.model)
        watches = [_Watch(chooser, self.lm.device) for chooser in choosers]
        cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
        with ExitStack() as hooks:
            for block in find_blocks(model):
                for watch in watches:
                    hooks.callback(between(block, partial(watch.see, block)))
            begin = _now(self.lm.device)
            logits = _forward(model, cache, ids, self.lm.device, last_only=True)[0]
            total = _now(self.lm.device) - begin
        prefill_ms = total - sum(watch.selection_ms + watch.diagnostics_ms for watch in watches)
        return [
            Prefill(
                tokens=len(ids),
                logits=logits,
                cache=cache,
                plan=watch.plan,
                fired=torch.stack([fired.to(self.lm.device) for fired in watch.fired], dim=1),
                prefill_ms=prefill_ms,
                selection_ms=watch.selection_ms,
            )
            for watch in watches
        ]

    def dense_arm(self, prefill: Prefill, room: int) -> EagerArm:
        return EagerArm(share_weights(self.lm.model), self.lm, prefill.cache)

    def sparse_arm(self, prefill: Prefill, room: int) -> EagerArm | RefreshingArm:
        model = share_weights(self.lm.model)
        if isinstance(prefill.plan, TokenRule):
            return EagerArm(model, self.lm, prefill.cache, rule=prefill.plan)
        arm = EagerArm(model, self.lm, prefill.cache)
        begin = _now(self.lm.device)
        arm.use(prefill.plan)
        arm.packing_ms = _now(self.lm.device) - begin
        return RefreshingArm(arm, prefill.plan) if isinstance(prefill.plan, RenewedSets) else arm

    def skips(self, chooser: Selector | TokenRule, block: FeedForward) -> bool:
        return block.can_be_packed and not isinstance(chooser, TokenRule)

    @torch.inference_mode()
    def judge(self, prefill: Prefill, tokens: list[int]) -> Judgement:
        sparse = share_weights(self.lm.model)
        follow = partial(_forward, sparse, copy.deepcopy(prefill.cache), device=self.lm.device)
        sets = prefill.plan
        if isinstance(sets, RenewedSets):
            sparse_logits, lacking = _renewing(find_blocks(sparse), sets, follow, tokens)
        else:
            with sets.on(find_blocks(sparse)):
                sparse_logits, lacking = follow(tokens), partial(_lacking, sets)
        errors: list[float] = []

        def see(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
            flat = activations.reshape(len(x), -1)
            errors.append(_output_error(block, flat, lacking(block, x, flat)))

        dense = share_weights(self.lm.model)
        with ExitStack() as hooks:
            for block in find_blocks(dense):
                hooks.callback(between(block, partial(see, block)))
            dense_logits = _forward(dense, copy.deepcopy(prefill.cache), tokens, self.lm.device)
        return Judgement(dense_logits, sparse_logits, errors)


class _Watch:
    """What a chooser makes of a prompt, layer by layer, and how long that takes, in ms."""

    def __init__(self, chooser: Selector | TokenRule, device: torch.device) -> None:
        self.chooser = chooser
        self.device = device
        self.choosing = Choosing(chooser)
        self.fired: list[torch.Tensor] = []
        self.selection_ms = self.diagnostics_ms = 0.0

    @property
    def plan(self) -> Plan:
        """What the chooser made of the prompt, once all layers have been seen."""
        return self.chooser if isinstance(self.chooser, TokenRule) else self.choosing.sets()

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        flat, begin = activations.reshape(len(x), -1), _now(self.device)
        if isinstance(self.chooser, TokenRule):
            self.fired.append(self.chooser.use(block, x, flat).neurons.round().long())
            self.diagnostics_ms += _now(self.device) - begin
            return
        self.choosing.see(block, flat)
        middle = _now(self.device)
        self.fired.append(self.chooser.fired(block, flat))
        self.selection_ms += middle - begin
        self.diagnostics_ms += _now(self.device) - middle


def _lacking(plan: Plan, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    """What the block's output lacks under the plan, float32 [T, d], for dense ``activations`` [T, d_ff]."""
    if isinstance(plan, TokenRule):
        return plan.lacking(block, x, activations)
    left_out = activations.float().index_fill(1, plan.indices[block.layer], 0)
    return left_out @ block.output_weight().T


def _renewing(
    blocks: tuple[FeedForward, ...],
    sets: RenewedSets,
    follow: Callable[[list[int]], torch.Tensor],
    tokens: list[int],
) -> tuple[torch.Tensor, Lack]:
    """Logits of ``tokens``, stretch by stretch as a refreshing arm computes them, and what that lacks."""
    logits: list[torch.Tensor] = []
    shares: list[tuple[ActiveSets | None, int]] = []
    for begin in range(0, len(tokens), sets.every):
        stretch = tokens[begin : begin + sets.every]
        sparse, last = stretch[: sets.every - 1], stretch[sets.every - 1 :]
        if sparse:
            with sets.on(blocks):
                logits.append(follow(sparse))
            shares.append((sets, len(sparse)))
        if last:
            seen: list[torch.Tensor] = []
            with observed(blocks, lambda _block, a: seen.append(a)):  # noqa: B023 - used within the turn
                logits.append(follow(last))
            shares.append((None, 1))
            sets = sets.renewed(seen)

    def lacking(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        parts = activations.split([count for _, count in shares])
        return torch.cat(
            [
                x.new_zeros(len(part), block.down.out_features) if each is None else _lacking(each, block, x, part)
                for part, (each, _) in zip(parts, shares, strict=True)
            ]
        )

    return torch.cat(logits), lacking


class EagerArm:
    """A transformers model of its own with a DynamicCache of its own.

    Under a ``rule`` its blocks compute all neurons, so a step reads what a dense one does and the rule's own bytes;
    so they do where bitsandbytes has quantised them or accelerate keeps them elsewhere.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lm: LoadedModel,
        prompt_cache: Cache,
        packing_ms: float = 0.0,
        rule: TokenRule | None = None,
    ) -> None:
        self.model = model
        self.blocks = find_blocks(model)
        self.device = lm.device
        self.cache = copy.deepcopy(prompt_cache)
        self.weight_bytes = bytes_per_step(model) + (rule.extra_bytes if rule else 0)
        self.packing_ms = packing_ms
        self.copied_bytes = 0
        self.masked: tuple[torch.Tensor, ...] | None = None
        self._limits = ExitStack()
        self._seen: list[torch.Tensor] = []
        self._fired: list[torch.Tensor] = []
        # Both arms carry these hooks, so the time they take falls on both alike.
        seen, fired = self._seen, self._fired  # not self: a cycle would outlive the arm
        if rule is not None:
            rule.install(self.blocks, lambda _block, use: fired.append(use.neurons))
        for block in self.blocks:
            block.down.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def use(self, sets: ActiveSets | None) -> None:
        """From the next step on it computes ``sets``, or all neurons."""
        self._limits.close()
        if sets is not None:
            self._limits.enter_context(sets.on(self.blocks))
        is_masked = sets is not None and not all(block.can_be_packed for block in self.blocks)
        self.masked = sets.indices if sets is not None and is_masked else None
        self.weight_bytes = bytes_per_step(self.model)
        limited = [] if sets is None else zip(self.blocks, sets.indices, strict=True)
        self.copied_bytes = sum(
            _bytes_of_neurons(block) for block, indices in limited if len(indices) < block.d_ff and block.can_be_packed
        )

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        self._seen.clear()
        self._fired.clear()
        logits = _forward(self.model, self.cache, [token], self.device)[0]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return logits

    def activations(self) -> list[torch.Tensor]:
        activations = [each.reshape(1, -1) for each in self._seen]
        if self.masked is None:
            return activations
        return [
            each if each.shape[1] == len(indices) else each.index_select(1, indices)  # blocks may differ in this
            for each, indices in zip(activations, self.masked, strict=True)
        ]

    def computed(self) -> list[int]:
        return [round(float(fired.sum())) for fired in self._fired] or [each.shape[1] for each in self.activations()]


def _bytes_of_neurons(block: FeedForward) -> int:
    """Of all that ``block`` holds now; the bias of ``down`` belongs to no neuron."""
    first = [part.nbytes for linear in block.linears[:-1] for part in linear.parameters(recurse=False)]
    return sum(first) + block.down.weight.nbytes


def _forward(
    model: PreTrainedModel, cache: Cache, ids: list[int], device: torch.device, *, last_only: bool = False
) -> torch.Tensor:
    """Logits float32 [positions, vocabulary]; ``last_only`` gives one position."""
    tokens = torch.tensor([ids], device=device)
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1 if last_only else 0)
    return output.logits[0].float()


def _output_error(block: FeedForward, activations: torch.Tensor, lacking: torch.Tensor) -> float:
    """Mean over tokens of ``||lacking|| / ||y||``, y without the output bias, for dense activations [T, d_ff]."""
    output = (activations.float() @ block.output_weight().T).norm(dim=1)
    return float(torch.where(output > 0, lacking.norm(dim=1) / output.clamp_min(1e-30), 0.0).mean())


def _now(device: torch.device) -> float:
    """Milliseconds, with the device's queue drained first."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3
