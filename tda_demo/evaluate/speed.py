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

from ..decode.arm import ArmDecoder
from ..decode.choose import engine_for
from ..methods.policy import Policy
from ..stats import metrics

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


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
class ArmSpeed:
    """``speedup`` over dense with its 95 % interval, over prompts and pairs within them, and the ``n`` pairs of blocks.

    ``tokens_per_second`` is the dense arm's times the speedup: rows are timed one after the other, and what the machine
    does meanwhile falls on both arms of a row but not on all rows alike.
    """

    tokens_per_second: float
    speedup: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class BlockTimes:
    """Median step times of a prompt's blocks in ms, a pair at the same place of both."""

    dense: list[float]
    sparse: list[float]


def time_arms(lm: LoadedModel, policy: Policy, ids: list[int], settings: SpeedSettings) -> BlockTimes:
    """Both arms from one prompt. A policy that keeps every neuron times the dense arm against itself."""
    engine = engine_for(lm, policy)
    prefill = engine.prefill(ids, policy)
    room = _room(lm, ids, settings)
    first = int(prefill.logits.argmax())
    dense, sparse = (
        ArmDecoder(partial(make, prefill, room), first, room) for make in (engine.dense_arm, engine.sparse_arm)
    )
    blocks = BlockTimes([], [])
    for pair in range(settings.pairs + 1):
        for decoder, medians in ((dense, blocks.dense), (sparse, blocks.sparse)):
            median = _block_median(decoder, settings)
            if pair > 0:
                medians.append(median)
    return blocks


def dense_ms(models: Sequence[LoadedModel], ids: list[int], policy: Policy, settings: SpeedSettings) -> list[float]:
    """Median step time of each model's dense arm, all of them in turn; ``policy`` reads the prompt with them."""
    decoders = [_dense_decoder(lm, ids, policy, settings) for lm in models]
    medians: list[list[float]] = [[] for _ in models]
    for turn in range(settings.prompts * settings.pairs + 1):
        for decoder, of_model in zip(decoders, medians, strict=True):
            median = _block_median(decoder, settings)
            if turn > 0:
                of_model.append(median)
    return [float(np.median(of_model)) for of_model in medians]


def speed_of(row: Sequence[BlockTimes], dense_ms: float) -> ArmSpeed:
    """What the blocks of a row, one or more prompts', come to, where the dense arm takes ``dense_ms`` a step."""
    speedup = metrics.grouped_speedup([prompt.dense for prompt in row], [prompt.sparse for prompt in row])
    return ArmSpeed(1000 / dense_ms * speedup.median, speedup.median, speedup.low, speedup.high, speedup.n)


def _dense_decoder(lm: LoadedModel, ids: list[int], policy: Policy, settings: SpeedSettings) -> ArmDecoder:
    engine = engine_for(lm, policy)
    prefill = engine.prefill(ids, policy)
    room = _room(lm, ids, settings)
    return ArmDecoder(partial(engine.dense_arm, prefill, room), int(prefill.logits.argmax()), room)


def _block_median(decoder: ArmDecoder, settings: SpeedSettings) -> float:
    return float(np.median(decoder.times_ms(settings.settle + settings.block)[settings.settle :]))


def _room(lm: LoadedModel, ids: list[int], settings: SpeedSettings) -> int:
    return min((settings.pairs + 1) * (settings.settle + settings.block), lm.context_length - len(ids))
