"""What a method costs, judged as the race goes: slices of the dense arm's text, between steps, off every clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..decode.arm import Prefill
from ..decode.engine import Engine
from ..evaluate.scoring import Judge, Judgement
from .events import ArmName, Priced

_FIRST, _SLICE = 8, 16  # positions: a first word soon, then slices that are cheap to read at once
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

    def add(self, judgement: Judgement, targets: Sequence[int]) -> None:
        """Of the next positions, which the ``targets`` follow."""
        compared = judgement.compare(targets)
        self.agrees += compared.agrees.tolist()
        self.kl += compared.kl.double().tolist()
        self._cett = self._cett + len(targets) * np.array(judgement.cett)


class Pricing:
    """Judges ``prefills``, one of every method, by name, on a text that is still being written."""

    def __init__(self, engine: Engine, prefills: dict[ArmName, Prefill]) -> None:
        self.prices: dict[ArmName, Price] = {name: Price() for name in prefills}
        self._judge = Judge(engine, list(prefills.values()))
        self._done = 0  # positions

    def go_on(self, tokens: Sequence[int]) -> Iterator[Priced]:
        """The next slice of the dense text ``tokens``, if it is long enough by now."""
        wanted = _SLICE if self._done else _FIRST
        if len(tokens) - 1 - self._done >= wanted:
            yield from self._read(tokens, wanted)
            settle()

    def finish(self, tokens: Sequence[int]) -> Iterator[Priced]:
        """Whatever is left of it."""
        if left := len(tokens) - 1 - self._done:
            yield from self._read(tokens, left)

    def _read(self, tokens: Sequence[int], count: int) -> Iterator[Priced]:
        start, end = self._done, self._done + count
        self._done = end
        judgements = self._judge.read(tokens[start:end])
        for (name, price), judgement in zip(self.prices.items(), judgements, strict=True):
            price.add(judgement, tokens[start + 1 : end + 1])
            yield Priced(name, tuple(price.agrees[start:end]), tuple(price.kl[start:end]))
