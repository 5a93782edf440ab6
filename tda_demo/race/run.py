"""The dense model, a method and, if there is one, its rival: arms from one prefill, told as a stream of events.

The arm with the least accumulated decode time steps next, so all have had equal compute at every moment and the
fastest one is visibly ahead, on any machine, however noisy. Only what happens inside a step is timed: one token fed,
the next one chosen. Between steps the text is judged, a slice at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..decode.arm import Arm, Prefill
from ..decode.choose import engine_for
from ..decode.text import TextStream, decode, sampler
from ..methods import TDA
from ..methods.base import Method
from ..methods.first_use import bind_at_once
from ..methods.plan import ActiveSets
from ..methods.policy import Policy
from ..methods.sequence import SequencePolicy
from ..model.precision import OF_FOUR_BITS
from ..stats import metrics
from ..stats.clock import shared_steps
from ..support.environment import describe
from ..support.errors import UserError
from ..support.progress import Report, silent
from .events import ArmName, EndReason, Event, Finished, Judging, Priced, PromptRead
from .lanes import Count, Lane, run_lanes
from .price import Price, pricing_of, settle
from .result import ArmResult, MethodResult, RaceQuality, RaceResult

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class RaceSettings:
    """How all arms decode. ``temperature`` 0 is greedy; each arm draws from a generator of its own seeded alike."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a setting is not a number in its range."""
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not 0 <= self.temperature <= 10:  # false for NaN too
            raise UserError(f"temperature is {self.temperature}; it must be a number from 0 (greedy) to 10.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be a number above 0 and at most 1.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must be a whole number from 0 to 2^63 - 1.")


@dataclass(frozen=True, eq=False)
class Contender:
    """``prefill`` is what the method's policy made of the prompt, ``lane`` that of the arm which decodes under it.

    ``note`` says what it was chosen from, where that is not what the method asks for.
    """

    lm: LoadedModel
    method: Method
    prefill: Prefill
    lane: Lane
    note: str = ""

    def read(self, tokens: tuple[str, ...], dense: Lane, rival: PromptRead | None = None) -> PromptRead:
        """How reading the prompt went, which has ``tokens``."""
        settled = self.prefill.plan.settled
        return PromptRead(
            tokens=tokens,
            prefill_ms=self.prefill.prefill_ms,
            selection_ms=self.prefill.selection_ms,
            packing_ms=self.lane.arm.packing_ms,
            active=_on_host(settled),
            fired=self.prefill.fired.cpu().numpy(),
            byte_bound=self._bound(dense),
            kept=None if settled is None else tuple(settled.counts()),
            scores=_scores(self.method, settled),
            rival=rival,
        )

    def quality(self, dense: Lane, price: Price) -> RaceQuality | None:
        """Both models on the dense arm's text; None where it has no token after the first, which all share."""
        if len(dense.tokens) < 2:
            return None
        parting = metrics.divergence(dense.tokens, self.lane.tokens)
        return RaceQuality(
            agreement=fmean(price.agrees),
            kl=max(0.0, fmean(price.kl)),  # rounding alone may take it below
            positions=len(price.kl),
            divergence=parting,
            divergence_at=None if parting is None else len(decode(self.lm.tokenizer, list(dense.tokens[:parting]))),
            cett=price.cett,
        )

    def result(self, dense: Lane, quality: RaceQuality | None, shared: int) -> MethodResult:
        """On the ``shared`` positions that all arms have written."""
        bound = self._bound(dense)
        speedup = metrics.speedup(dense.times, self.lane.times, shared)
        prefill = self.prefill
        return MethodResult(
            method=self.method.name,
            settings=self.method.settings(),
            sparse=arm_result(self.lane, prefill.prefill_ms + prefill.selection_ms + self.lane.arm.packing_ms, shared),
            speedup=speedup,
            byte_bound=bound,
            efficiency=None if speedup is None or bound is None else metrics.efficiency(speedup.ratio, bound),
            sparsity=self._sparsity(),
            quality=quality,
            note="; ".join(filter(None, [self.note, prefill.plan.note])),
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


def count_fired(lm: LoadedModel, policy: Policy, prefill: Prefill, arm: Arm) -> np.ndarray:
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


def _scores(method: Method, active: ActiveSets | None) -> np.ndarray | None:
    """Quantiles of every layer's scores, float64 [layers, quantiles], where thresholds are set on them."""
    if active is None or not active.evidence or not isinstance(method, TDA):
        return None
    return np.stack([layer[0].quantiles() for layer in active.evidence])


def _on_host(active: ActiveSets | None) -> ActiveSets | None:
    """A copy that whoever draws it can read while the device decodes, or a step is captured there."""
    if active is None:
        return None
    return ActiveSets(tuple(mask.cpu() for mask in active.masks))


def arm_result(lane: Lane, prefill_ms: float, shared: int) -> ArmResult:
    return ArmResult(
        text=lane.stream.text,
        tokens=len(lane.tokens),
        step_ms=lane.step_ms,
        prefill_ms=prefill_ms,
        tokens_per_second=lane.times.rate(shared),
        weight_bytes=None if lane.mean_bytes is None else round(lane.mean_bytes),
        ended=lane.ended or "stopped",
    )


def race(
    lm: LoadedModel,
    method: Method,
    prompt: str,
    settings: RaceSettings | None = None,
    stop: threading.Event | None = None,
    report: Report = silent,
    rival: Method | None = None,
) -> Iterator[Event]:
    """Races the dense model against the same model under ``method``, and under ``rival`` too where there is one.

    All arms run on one engine, the fastest that can run them all. Ends within one step of ``stop``. Yields PromptRead,
    then Stepped and Ended of all arms as they come, Priced between them, Judging unless stopped, and Finished.

    Raises:
        UserError: the prompt is blank or too long for the model, or a setting does not fit it.
    """
    settings = settings or RaceSettings()
    stop = stop or threading.Event()
    ids = lm.prompt_ids(prompt)
    methods = [method] if rival is None else [method, rival]
    bound = [bind_at_once(raced, lm, report) for raced in methods]
    policies = [each.policy for each in bound]
    engine = engine_for(lm, *policies)
    for policy in policies:
        engine.warm_up(report, policy)
    prefills = engine.prefills(ids, policies)
    room = min(settings.max_new_tokens, lm.context_length - len(ids))
    reason: EndReason = "length" if room == settings.max_new_tokens else "context"

    def lane(name: ArmName, arm: Arm, count: Count | None = None) -> Lane:
        choose = sampler(settings.temperature, settings.top_p, settings.seed)
        return Lane(name, arm, choose, TextStream(lm.tokenizer), lm.eos_ids, room, reason, count)

    prefilled = prefills[0]
    dense = lane("dense", engine.dense_arm(prefilled, room))
    names: tuple[ArmName, ...] = ("sparse", "rival")
    contenders = [
        Contender(
            lm,
            raced.method,
            prefill,
            lane(name, engine.sparse_arm(prefill, room), partial(count_fired, lm, raced.policy, prefill)),
            raced.note,
        )
        for name, raced, prefill in zip(names, bound, prefills, strict=False)
    ]
    first, *rivals = contenders  # one rival at most
    tokens = tuple(decode(lm.tokenizer, [token], special=True) for token in ids)
    yield first.read(tokens, dense, *(other.read(tokens, dense) for other in rivals))
    lanes = [dense, *(contender.lane for contender in contenders)]
    for starting in lanes:
        yield from starting.start(prefilled.logits)
    pricing = pricing_of(engine, {other.lane.name: other.prefill for other in contenders}, room)

    def between() -> Iterator[Priced]:
        return iter(()) if stop.is_set() else pricing.go_on(dense)

    settle()
    first_end = yield from run_lanes(lanes, stop, between)
    qualities = [None for _ in contenders]
    if not stop.is_set():
        yield Judging()
        yield from pricing.finish(dense)
        qualities = [other.quality(dense, pricing.prices[other.lane.name]) for other in contenders]
    shared = shared_steps(*(lane.times for lane in lanes))
    result, *rival_results = (
        contender.result(dense, quality, shared) for contender, quality in zip(contenders, qualities, strict=True)
    )
    yield Finished(
        RaceResult(
            model=lm.name,
            device=str(lm.device),
            precision=lm.precision,
            engine=engine.name,
            prompt_tokens=prefilled.tokens,
            dense=arm_result(dense, prefilled.prefill_ms, shared),
            environment=describe(lm.device, lm.precision) | ({"ignored": lm.ignored} if lm.ignored else {}),
            **vars(result),
            first_end=first_end,
            fewer_bits=engine.fewer_bits,
            rounded_in=() if lm.has_four_bits else tuple(name for name in OF_FOUR_BITS if name in engine.fewer_bits),
            rival=rival_results[0] if rival_results else None,
            speedup_over_rival=metrics.speedup(rivals[0].lane.times, first.lane.times, shared) if rivals else None,
        )
    )
