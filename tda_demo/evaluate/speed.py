"""Measured speed of one row: the dense arm and the row's own decode the same prompts in turn, some tokens at a time.

Interleaved, so that whatever else the machine does falls on both; and in blocks, so that each finds its weights where
its own last step left them, as when it runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .. import metrics
from ..bench.decoders import ArmDecoder
from ..decode.arm import engine_for
from .scoring import Chooser

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True)
class SpeedSettings:
    """``pairs`` of blocks a prompt, each ``block`` timed steps after ``settle`` untimed ones; ``prompts`` of the texts.

    The first pair of every prompt is not counted: it maps pages and wakes threads.
    """

    prompts: int = 3
    pairs: int = 6
    block: int = 8
    settle: int = 2


@dataclass(frozen=True)
class Measured:
    """``tokens_per_second`` of the row's own arm; ``speedup`` over dense with its 95 % interval and ``n`` pairs."""

    tokens_per_second: float
    speedup: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Blocks:
    """Median step times of a prompt's blocks in ms, a pair at the same place of both."""

    dense: list[float]
    sparse: list[float]


def measure(lm: LoadedModel, chooser: Chooser, ids: list[int], settings: SpeedSettings) -> Blocks:
    """Both arms from one prompt. A selector that keeps every neuron times the dense arm against itself."""
    engine = engine_for(lm, chooser)
    prefill = engine.prefill(ids, chooser)
    steps = (settings.pairs + 1) * (settings.settle + settings.block)
    room = min(steps, lm.context_length - len(ids))
    first = int(prefill.logits.argmax())
    dense, sparse = (
        ArmDecoder(partial(make, prefill, room), first, room) for make in (engine.dense_arm, engine.sparse_arm)
    )
    blocks = Blocks([], [])
    for pair in range(settings.pairs + 1):
        for decoder, medians in ((dense, blocks.dense), (sparse, blocks.sparse)):
            times = decoder.times_ms(settings.settle + settings.block)[settings.settle :]
            if pair > 0:
                medians.append(float(np.median(times)))
    return blocks


def measured(prompts: Sequence[Blocks]) -> Measured:
    """What the blocks of all prompts, at least one, come to."""
    dense = [ms for blocks in prompts for ms in blocks.dense]
    sparse = [ms for blocks in prompts for ms in blocks.sparse]
    found = metrics.paired_speedup(dense, sparse)
    return Measured(1000 / float(np.median(sparse)), found.median, found.low, found.high, found.n)
