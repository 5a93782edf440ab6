"""One method in a race: what it made of the prompt, its lane, and what is measured of it against the dense lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..decode.arm import Arm, Prefill
from ..decode.engine import Engine
from ..decode.text import decode
from ..evaluate.scoring import judge
from ..methods.base import Method
from ..methods.plan import ActiveSets
from ..methods.policy import Policy, SequencePolicy
from ..stats import metrics
from .events import PromptRead
from .lanes import Lane
from .result import ArmResult, MethodResult, RaceQuality

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class Contender:
    """``prefill`` is what the method's policy made of the prompt, ``lane`` that of the arm which decodes under it."""

    lm: LoadedModel
    method: Method
    prefill: Prefill
    lane: Lane

    def read(self, tokens: tuple[str, ...], dense: Lane, rival: PromptRead | None = None) -> PromptRead:
        """How reading the prompt went, which has ``tokens``."""
        return PromptRead(
            tokens=tokens,
            prefill_ms=self.prefill.prefill_ms,
            selection_ms=self.prefill.selection_ms,
            packing_ms=self.lane.arm.packing_ms,
            active=_on_host(self.prefill.plan.settled),
            fired=self.prefill.fired.cpu().numpy(),
            byte_bound=self._bound(dense),
            rival=rival,
        )

    def judge(self, engine: Engine, dense: Lane) -> RaceQuality | None:
        """Both models on the dense arm's text; None where it has no token after the first, which all share."""
        if len(dense.tokens) < 2:
            return None
        judgement = judge(engine, self.prefill, list(dense.tokens[:-1]))
        compared = judgement.compared(dense.tokens[1:])
        parting = metrics.divergence(dense.tokens, self.lane.tokens)
        return RaceQuality(
            agreement=float(compared.agrees.double().mean()),
            kl=max(0.0, float(compared.kl.double().mean())),  # rounding alone may take it below
            positions=len(compared.kl),
            divergence=parting,
            divergence_at=None if parting is None else len(decode(self.lm.tokenizer, list(dense.tokens[:parting]))),
            cett=judgement.cett,
        )

    def result(self, dense: Lane, quality: RaceQuality | None) -> MethodResult:
        bound = self._bound(dense)
        speedup = metrics.speedup(dense.step_ms, self.lane.step_ms)
        prefill = self.prefill
        return MethodResult(
            method=self.method.name,
            settings=self.method.settings(),
            sparse=arm_result(self.lane, prefill.prefill_ms + prefill.selection_ms + self.lane.arm.packing_ms),
            speedup=speedup,
            byte_bound=bound,
            efficiency=None if speedup is None or bound is None else metrics.efficiency(speedup.median, bound),
            sparsity=self._sparsity(),
            quality=quality,
            note=prefill.plan.note,
        )

    def _bound(self, dense: Lane) -> float | None:
        if dense.mean_bytes is None or self.lane.mean_bytes is None:
            return None
        return metrics.byte_bound(dense.mean_bytes, self.lane.mean_bytes)

    def _sparsity(self) -> list[float]:
        """Per layer, where steps differ the mean over them; before any step, over the prompt."""
        if (settled := self.prefill.plan.settled) is not None:
            return settled.sparsity()
        counts = np.mean(self.lane.fired or self.prefill.fired.cpu().numpy(), axis=0)
        return [1 - float(count) / block.d_ff for count, block in zip(counts, self.lm.blocks, strict=True)]


def fired(lm: LoadedModel, policy: Policy, prefill: Prefill, arm: Arm) -> np.ndarray:
    """Neurons of each layer that fired at the arm's last step, int64 [layers]; where sets differ, those it computed."""
    settled = prefill.plan.settled
    if settled is None:
        return np.array(arm.computed())
    selector = cast(SequencePolicy, policy)  # whose sets they are
    counts = [
        selector.count_fired(block, activations, computed)
        for block, activations, computed in zip(lm.blocks, arm.activations(), settled.indices, strict=True)
    ]
    return torch.cat(counts).cpu().numpy()


def _on_host(active: ActiveSets | None) -> ActiveSets | None:
    """A copy that whoever draws it can read while the device decodes, or a step is captured there."""
    if active is None:
        return None
    return ActiveSets(tuple(mask.cpu() for mask in active.masks))


def arm_result(lane: Lane, prefill_ms: float) -> ArmResult:
    return ArmResult(
        text=lane.stream.text,
        tokens=len(lane.tokens),
        step_ms=lane.step_ms,
        prefill_ms=prefill_ms,
        tokens_per_second=metrics.tokens_per_second(lane.step_ms),
        weight_bytes=None if lane.mean_bytes is None else round(lane.mean_bytes),
        ended=lane.ended or "stopped",
    )
