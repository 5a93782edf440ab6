"""The one clock of a race: what each step counts for, whoever asks.

Lanes, rates and speedups all come from these times, so they cannot disagree on who is faster. A step during which the
machine did something else would decide a race alone; so it counts for no more than a few usual ones.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

import numpy as np

CAP = 3.0  # times the median of the arm's steps before it
_LEAST = 3  # steps before one, without which there is no median to speak of


class StepClock:
    """The steps of one arm as they come: ``counted`` ms each, of which ``capped`` tells those that took longer.

    A step counts for what it took, or for ``CAP`` times the median of what the steps before it took, if that is less.
    What comes later never changes what a step has counted for.
    """

    def __init__(self, step_ms: Iterable[float] = ()) -> None:
        self.counted: list[float] = []
        self.capped: list[bool] = []
        self.total = 0.0
        self._sorted: list[float] = []
        for ms in step_ms:
            self.add(ms)

    def add(self, ms: float) -> None:
        """One more step, of ``ms``."""
        most = CAP * self._median() if len(self._sorted) >= _LEAST else ms
        self.counted.append(min(ms, most))
        self.capped.append(ms > most)
        self.total += self.counted[-1]
        insort(self._sorted, ms)

    def first(self, n: int) -> np.ndarray:
        """What the first ``n`` steps counted for, float64 [n] ms."""
        return np.array(self.counted[:n], dtype=np.float64)

    def rate(self, n: int) -> float | None:
        """Tokens per second over the first ``n`` steps; None without a step."""
        spent = float(self.first(n).sum())
        return 1000 * min(n, len(self.counted)) / spent if spent > 0 else None

    def _median(self) -> float:
        middle = len(self._sorted) // 2
        upper = self._sorted[middle]
        return upper if len(self._sorted) % 2 else (self._sorted[middle - 1] + upper) / 2


def shared_steps(*clocks: StepClock) -> int:
    """How many positions all arms have written: those that are compared."""
    return min(len(clock.counted) for clock in clocks)
