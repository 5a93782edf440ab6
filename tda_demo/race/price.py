"""What a method costs, judged as the race goes: both models on the dense arm's text, between steps, off every clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..decode.arm import Arm, Prefill
from ..decode.engine import Engine
from ..evaluate.judge import Judge
from ..stats import metrics
from .events import ArmName, Priced
from .lanes import Lane

_FIRST, _SLICE = 8, 16  # positions: a first word soon, then as many as are cheap to compare at once
_PIECE = 128  # positions that are reread at once in the end: each piece decodes low-bit copies anew
_SETTLE_SECONDS = 0.02


def settle() -> None:
    """Waits until torch's threads sleep: for a while after its last operation they spin on the cores of the next step,
    which would be charged for it.
    """
    time.sleep(_SETTLE_SECONDS)


@dataclass
class Price:
    """What is known of one method: a value a position, and realised CETT per layer, summed over positions."""

    agrees: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    _cett: np.ndarray | float = 0.0

    @property
    def cett(self) -> list[float]:
        """Mean over the positions judged, per layer."""
        return (np.asarray(self._cett) / len(self.kl)).tolist()

    def add(self, compared: metrics.ForcedComparison) -> None:
        """Of the next positions."""
        self.agrees += compared.agrees.tolist()
        self.kl += compared.kl.double().tolist()

    def add_cett(self, cett: Sequence[float], positions: int) -> None:
        """Per layer, the mean over so many ``positions``."""
        self._cett = self._cett + positions * np.array(cett)


class Pricing(ABC):
    """Judges ``prefills``, one of every method, by name, on a text that is still being written."""

    def __init__(self, engine: Engine, prefills: dict[ArmName, Prefill]) -> None:
        self.prices: dict[ArmName, Price] = {name: Price() for name in prefills}
        self._engine, self._prefills = engine, list(prefills.values())
        self._told = 0  # positions

    @cached_property
    def _judge(self) -> Judge:
        """Made when it is first asked: it copies the prompt's cache."""
        return Judge(self._engine, self._prefills)

    @abstractmethod
    def go_on(self, dense: Lane) -> Iterator[Priced]:
        """The next slice of what ``dense`` has written, if there is one by now. To be asked after every arm's step."""

    @abstractmethod
    def finish(self, dense: Lane) -> Iterator[Priced]:
        """Whatever is left of it, and realised CETT."""

    @property
    def _wanted(self) -> int:
        return _SLICE if self._told else _FIRST

    def _tell(self) -> Iterator[Priced]:
        """What the prices know more than was told."""
        start = self._told
        for name, price in self.prices.items():
            self._told = len(price.kl)
            yield Priced(name, tuple(price.agrees[start:]), tuple(price.kl[start:]))


class SlicedPricing(Pricing):
    """By passes of transformers over a slice at a time."""

    def go_on(self, dense: Lane) -> Iterator[Priced]:
        if len(dense.tokens) - 1 - self._told >= self._wanted:
            yield from self._read(dense, self._wanted)
            settle()

    def finish(self, dense: Lane) -> Iterator[Priced]:
        if left := len(dense.tokens) - 1 - self._told:
            yield from self._read(dense, left)

    def _read(self, dense: Lane, count: int) -> Iterator[Priced]:
        begin, end = self._told, self._told + count
        judgements = self._judge.read(dense.tokens[begin:end])
        for price, judgement in zip(self.prices.values(), judgements, strict=True):
            price.add(judgement.compare(dense.tokens[begin + 1 : end + 1]))
            price.add_cett(judgement.cett, count)
        yield from self._tell()


class SteppedPricing(Pricing):
    """By ``arms`` of their own, one of every method, fed what the dense arm was fed: so what is judged is what both
    arms compute, and it costs a step more.

    It is taken after another arm's step than dense's: what fired is counted there, in Python, and whatever else the
    process has to do meanwhile runs beside the step that comes next. That must not be dense's every time.
    """

    def __init__(self, engine: Engine, prefills: dict[ArmName, Prefill], arms: dict[ArmName, Arm]) -> None:
        super().__init__(engine, prefills)
        self._arms = arms
        self._dense: list[torch.Tensor] = []  # logits [vocabulary] of the positions not told yet
        self._sparse: dict[ArmName, list[torch.Tensor]] = {name: [] for name in arms}

    def go_on(self, dense: Lane) -> Iterator[Priced]:
        stepped = len(dense.tokens) - 1 > self._told + len(self._dense)
        if stepped and dense.logits is not None:
            self._dense.append(dense.logits.clone())
        if not stepped or len(self._dense) - self._judged > 1:  # dense goes on alone
            self._judge_next(dense)
        if self._judged >= self._wanted:
            yield from self._compare(dense)
            settle()

    @property
    def _judged(self) -> int:
        """Positions not told yet that have been judged."""
        return min(map(len, self._sparse.values()))

    def _judge_next(self, dense: Lane) -> None:
        if self._judged == len(self._dense):
            return
        token = dense.tokens[self._told + self._judged]
        for name, arm in self._arms.items():
            self._sparse[name].append(arm.step(token).clone())

    def finish(self, dense: Lane) -> Iterator[Priced]:
        while self._judged < len(self._dense):
            self._judge_next(dense)
        if self._dense:
            yield from self._compare(dense)
        self._arms.clear()  # what follows takes as much memory as they do
        read = dense.tokens[:-1]
        for begin in range(0, len(read), _PIECE):
            piece = read[begin : begin + _PIECE]
            for price, cett in zip(self.prices.values(), self._judge.read_cett(piece), strict=True):
                price.add_cett(cett, len(piece))

    def _compare(self, dense: Lane) -> Iterator[Priced]:
        logits = torch.stack(self._dense[: self._judged])
        begin = self._told + 1
        targets = torch.tensor(dense.tokens[begin : begin + len(logits)], device=logits.device)
        for name, price in self.prices.items():
            price.add(metrics.compare_forced(logits, torch.stack(self._sparse[name]), targets))
            self._sparse[name].clear()
        del self._dense[: len(logits)]
        yield from self._tell()


def pricing_of(engine: Engine, prefills: dict[ArmName, Prefill], room: int) -> Pricing:
    """The pricing that suits ``engine``, of texts of at most ``room`` tokens."""
    arms: dict[ArmName, Arm] = {}
    for name, prefill in prefills.items():
        if (arm := engine.judging_arm(prefill, room)) is None:
            return SlicedPricing(engine, prefills)
        arms[name] = arm
    return SteppedPricing(engine, prefills, arms)
