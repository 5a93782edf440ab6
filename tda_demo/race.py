"""Two arms from one prefill, told as a stream of events.

The arm with the least accumulated decode time steps next, so both have had equal compute at every moment and the
faster one is visibly ahead, on any machine, however noisy. Only what happens inside a step is timed: one token fed, the
next one chosen.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from . import metrics
from .decode.arm import Arm, Engine, Prefill, TokenArm, engine_for
from .decode.sampling import Sampler, sampler
from .decode.text import TextStream, decode
from .environment import describe
from .errors import UserError
from .methods.base import ActiveSets, Method, Selector
from .methods.token import TokenRule
from .progress import Report, silent
from .result import ArmResult, Quality, RaceResult

if TYPE_CHECKING:
    from .models import LoadedModel

ArmName = Literal["dense", "sparse"]
EndReason = Literal["eos", "length", "context", "stopped"]


@dataclass(frozen=True)
class RaceSettings:
    """How both arms decode. ``temperature`` 0 is greedy; each arm draws from a generator of its own seeded alike."""

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
class PromptRead:
    """The prompt has been read and the active sets chosen. ``fired`` int64 [prompt tokens, layers].

    ``active`` and ``byte_bound`` are None where what is computed is known step by step: under token-level methods and
    active sets that are chosen anew.
    """

    tokens: tuple[str, ...]
    prefill_ms: float
    selection_ms: float
    packing_ms: float
    active: ActiveSets | None
    fired: np.ndarray
    byte_bound: float | None


@dataclass(frozen=True, eq=False)
class Stepped:
    """Token ``index`` of an arm's text. The first comes from the prompt's own logits: no ``ms``, bytes or ``fired``.

    ``text`` is what the token adds; ``weight_bytes`` what the step read; ``fired`` int64 [layers], neurons that fired
    at the step, of the sparse arm only: where ``PromptRead.active`` is None, those it computed.
    """

    arm: ArmName
    index: int
    text: str
    ms: float | None
    weight_bytes: int | None
    fired: np.ndarray | None


@dataclass(frozen=True)
class Ended:
    """An arm has stopped: at its end token, at the length asked for, at the model's context limit, or by the user."""

    arm: ArmName
    reason: EndReason


@dataclass(frozen=True)
class Judging:
    """Decoding is over; the teacher-forced passes that give agreement, KL and realised CETT begin."""


@dataclass(frozen=True)
class Finished:
    result: RaceResult


Event = PromptRead | Stepped | Ended | Judging | Finished


@dataclass
class Lane:
    """An arm in a race: its text so far and the time it has used."""

    name: ArmName
    arm: Arm
    choose: Sampler
    stream: TextStream
    eos_ids: frozenset[int]
    limit: int
    limit_reason: EndReason
    clock: Callable[[], float] = time.perf_counter
    step_ms: list[float] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    ended: EndReason | None = None

    @property
    def tokens(self) -> list[int]:
        return self.stream.tokens

    @property
    def elapsed_ms(self) -> float:
        return math.fsum(self.step_ms)

    @property
    def mean_bytes(self) -> float | None:
        """Weight bytes of a step; None where no step was taken and they depend on the token."""
        return fmean(self.step_bytes) if self.step_bytes else self.arm.weight_bytes

    def start(self, prompt_logits: torch.Tensor) -> Iterator[Event]:
        """The first token, from the logits both arms share."""
        yield from self._accept(self.choose(prompt_logits), None, None, None)

    def advance(self, fired: Callable[[Arm], np.ndarray] | None) -> Iterator[Event]:
        """One timed step; what ``fired`` counts is looked at after the clock has stopped."""
        begin = self.clock()
        token = self.choose(self.arm.step(self.tokens[-1]))
        ms = (self.clock() - begin) * 1e3
        read = self.arm.weight_bytes or 0
        self.step_ms.append(ms)
        self.step_bytes.append(read)
        yield from self._accept(token, ms, read, fired(self.arm) if fired else None)

    def end(self, reason: EndReason) -> Iterator[Event]:
        self.ended = reason
        if rest := self.stream.finish():
            yield Stepped(self.name, len(self.tokens) - 1, rest, None, None, None)
        yield Ended(self.name, reason)

    def _accept(
        self, token: int, ms: float | None, weight_bytes: int | None, fired: np.ndarray | None
    ) -> Iterator[Event]:
        yield Stepped(self.name, len(self.tokens), self.stream.push(token), ms, weight_bytes, fired)
        if token in self.eos_ids:
            yield from self.end("eos")
        elif len(self.tokens) == self.limit:
            yield from self.end(self.limit_reason)


def race(
    lm: LoadedModel,
    method: Method,
    prompt: str,
    settings: RaceSettings | None = None,
    stop: threading.Event | None = None,
    report: Report = silent,
) -> Iterator[Event]:
    """Races the dense model against the same model under ``method``; ends within one step of ``stop``.

    Yields PromptRead, then Stepped and Ended of both arms as they come, Judging unless stopped, and Finished.

    Raises:
        UserError: the prompt is blank or too long for the model, or a setting does not fit it.
    """
    settings = settings or RaceSettings()
    stop = stop or threading.Event()
    ids = lm.prompt_ids(prompt)
    chooser = method.bind(lm, report)
    engine = engine_for(lm, chooser)
    engine.warm_up(report, chooser)
    prefill = engine.prefill(ids, chooser)
    room = min(settings.max_new_tokens, lm.context_length - len(ids))
    reason: EndReason = "length" if room == settings.max_new_tokens else "context"

    def lane(name: ArmName, arm: Arm) -> Lane:
        choose = sampler(settings.temperature, settings.top_p, settings.seed)
        return Lane(name, arm, choose, TextStream(lm.tokenizer), lm.eos_ids, room, reason)

    dense = lane("dense", engine.dense_arm(prefill, room))
    sparse = lane("sparse", engine.sparse_arm(prefill, room))
    yield PromptRead(
        tokens=tuple(decode(lm.tokenizer, [token], special=True) for token in ids),
        prefill_ms=prefill.prefill_ms,
        selection_ms=prefill.selection_ms,
        packing_ms=sparse.arm.packing_ms,
        active=prefill.settled,
        fired=prefill.fired.cpu().numpy(),
        byte_bound=_bound(dense, sparse),
    )
    yield from dense.start(prefill.logits)
    yield from sparse.start(prefill.logits)
    steps: list[np.ndarray] = []

    def fired(arm: Arm) -> np.ndarray:
        steps.append(_fired(lm, chooser, prefill.settled, arm))
        return steps[-1]

    yield from run_lanes(dense, sparse, stop, fired)
    quality = None
    if not stop.is_set():
        yield Judging()
        quality = _judge(lm, engine, prefill, dense.tokens, sparse.tokens)
    sparsity = _sparsity(lm, prefill, steps)
    yield Finished(_result(lm, engine, method, prefill, dense, sparse, sparsity, quality))


def run_lanes(dense: Lane, sparse: Lane, stop: threading.Event, fired: Callable[[Arm], np.ndarray]) -> Iterator[Event]:
    """Steps the lane with the least decode time so far, dense first where they are level, until both have ended."""
    while running := [lane for lane in (dense, sparse) if lane.ended is None]:
        if stop.is_set():
            for lane in running:
                yield from lane.end("stopped")
            return
        lane = min(running, key=lambda lane: lane.elapsed_ms)
        yield from lane.advance(fired if lane is sparse else None)


def _fired(lm: LoadedModel, chooser: Selector | TokenRule, settled: ActiveSets | None, arm: Arm) -> np.ndarray:
    if settled is None or isinstance(chooser, TokenRule):
        return np.array(cast(TokenArm, arm).computed())
    counts = [
        chooser.fired(block, activations, computed)
        for block, activations, computed in zip(lm.blocks, arm.activations(), settled.indices, strict=True)
    ]
    return torch.cat(counts).cpu().numpy()


def _sparsity(lm: LoadedModel, prefill: Prefill, fired: Sequence[np.ndarray]) -> list[float]:
    """Per layer, where steps differ the mean over them; before any step, over the prompt."""
    if prefill.settled is not None:
        return prefill.settled.sparsity()
    counts = np.mean(fired or prefill.fired.cpu().numpy(), axis=0)
    return [1 - float(count) / block.d_ff for count, block in zip(counts, lm.blocks, strict=True)]


def _bound(dense: Lane, sparse: Lane) -> float | None:
    if dense.mean_bytes is None or sparse.mean_bytes is None:
        return None
    return metrics.byte_bound(dense.mean_bytes, sparse.mean_bytes)


def _judge(
    lm: LoadedModel, engine: Engine, prefill: Prefill, dense: Sequence[int], sparse: Sequence[int]
) -> Quality | None:
    """Both models on the dense arm's text; None where it has no token after the first, which both share."""
    if len(dense) < 2:
        return None
    judgement = engine.judge(prefill, list(dense[:-1]))
    dense_logits, sparse_logits = judgement.dense_logits.cpu().numpy(), judgement.sparse_logits.cpu().numpy()
    parting = metrics.divergence(dense, sparse)
    return Quality(
        agreement=metrics.agreement(dense_logits, sparse_logits),
        kl=metrics.kl_divergence(dense_logits, sparse_logits),
        positions=len(dense_logits),
        divergence=parting,
        divergence_at=None if parting is None else len(decode(lm.tokenizer, list(dense[:parting]))),
        cett=judgement.cett,
    )


def _result(
    lm: LoadedModel,
    engine: Engine,
    method: Method,
    prefill: Prefill,
    dense: Lane,
    sparse: Lane,
    sparsity: list[float],
    quality: Quality | None,
) -> RaceResult:
    bound = _bound(dense, sparse)
    speedup = metrics.speedup(dense.step_ms, sparse.step_ms)
    return RaceResult(
        model=lm.name,
        device=str(lm.device),
        precision=lm.precision,
        engine=engine.name,
        method=method.name,
        settings=method.settings(),
        prompt_tokens=prefill.tokens,
        dense=_arm_result(dense, prefill.prefill_ms),
        sparse=_arm_result(sparse, prefill.prefill_ms + prefill.selection_ms + sparse.arm.packing_ms),
        speedup=speedup,
        byte_bound=bound,
        efficiency=None if speedup is None or bound is None else metrics.efficiency(speedup.median, bound),
        sparsity=sparsity,
        quality=quality,
        environment=describe(lm.device, lm.precision),
        note=prefill.plan.note if isinstance(prefill.plan, TokenRule) else "",
    )


def _arm_result(lane: Lane, prefill_ms: float) -> ArmResult:
    return ArmResult(
        text=lane.stream.text,
        tokens=len(lane.tokens),
        step_ms=lane.step_ms,
        prefill_ms=prefill_ms,
        tokens_per_second=metrics.tokens_per_second(lane.step_ms),
        weight_bytes=None if lane.mean_bytes is None else round(lane.mean_bytes),
        ended=lane.ended or "stopped",
    )
