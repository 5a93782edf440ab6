"""An arm, timed for as long as one likes."""

from __future__ import annotations

import time
from collections.abc import Callable

from .arm import Arm


class ArmDecoder:
    """An arm that goes on greedily, and starts over from the prompt when its room is used up."""

    def __init__(self, make: Callable[[], Arm], first: int, room: int) -> None:
        self.make, self.first, self.room = make, first, room
        self.left = 0

    def times_ms(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            if self.left == 0:
                self.arm, self.token, self.left = self.make(), self.first, self.room
            begin = time.perf_counter()
            self.token = int(self.arm.step(self.token).argmax())
            times.append((time.perf_counter() - begin) * 1e3)
            self.left -= 1
        return times
