"""How long-running work says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A reading: ``done`` of ``total`` units (``total`` 0 when unknown) of the work named ``stage``."""

    stage: str
    done: int
    total: int
    unit: str


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The listener that hears nothing."""


@contextmanager
def terminal_bar() -> Iterator[Report]:
    """A tqdm bar on stderr per stage; bytes are shown in MB. Nothing is drawn where stderr is not a terminal."""
    from tqdm import tqdm

    bar: tqdm | None = None
    stage = ""

    def report(reading: Progress) -> None:
        nonlocal bar, stage
        if bar is None or stage != reading.stage:
            if bar is not None:
                bar.close()
            stage = reading.stage
            is_bytes = reading.unit == "B"
            bar = tqdm(
                desc=reading.stage, total=reading.total or None, unit=reading.unit, unit_scale=is_bytes, disable=None
            )
        bar.update(reading.done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()
