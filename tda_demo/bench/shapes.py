"""The speed table of real shapes on a GPU: random weights, batch 1, one command that builds, checks and times.

Contestants take turns within one run, as on the CPU. Active sets are drawn at random, which scatters them as much as
can be; random weights say nothing about quality. The card's copy bandwidth, bytes read plus bytes written, is measured
in the same rounds.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import metrics
from ..decode.arm import Prefill
from ..decode.eager import share_weights
from ..decode.gpu.graph import CudaGraphArm, CudaGraphEngine, Decoder
from ..decode.timed import ArmDecoder
from ..errors import UserError
from ..feedforward import FeedForward
from ..kernels.gpu.blocks import has_triton
from ..kernels.gpu.choice import Choice
from ..methods.base import Selector
from ..progress import Progress, Report, silent
from . import BenchSettings, Contestant, row_of
from .checks import check_blocks, check_step
from .configs import config_of
from .decoders import StockGenerate
from .mlp_only import mlp_contestants
from .random_model import random_model, to_nf4
from .table import Row

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..models import LoadedModel

KEEPS = (0.75, 0.5, 0.3)
PRECISIONS = ("bfloat16", "nf4")
_ROOM = 128
MakeEngine = Callable[..., CudaGraphEngine]


@dataclass(frozen=True)
class ShapesTable:
    """Rows, the copy bandwidth measured beside them in GB/s, the context length, and what else was found, in words."""

    rows: list[Row]
    copy_gb_per_second: float
    context: int
    notes: list[str]


@dataclass(frozen=True, eq=False)
class RandomShare(Selector):
    """The share ``keep`` of each block's neurons, drawn at random."""

    keep: float

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        chosen = torch.randperm(block.d_ff, device=activations.device)[: round(self.keep * block.d_ff)]
        return torch.zeros(block.d_ff, dtype=torch.bool, device=activations.device).index_fill(0, chosen, True)

    def fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.zeros(len(activations), dtype=torch.int64, device=activations.device)


class CopyBandwidth:
    """Bytes read plus bytes written a second, of a copy much larger than the card's cache."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.source = torch.ones(nbytes // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.readings: list[float] = []

    def measure(self) -> None:
        _wait(self.source.device)
        begin = time.perf_counter()
        for _ in range(4):
            self.target.copy_(self.source)
        _wait(self.source.device)
        self.readings.append(4 * 2 * self.source.nbytes / (time.perf_counter() - begin) / 1e9)

    @property
    def gb_per_second(self) -> float:
        return float(np.median(self.readings))


def bench_shapes(name: str | None, precision: str | None = None, report: Report = silent) -> ShapesTable:
    """Measures the shapes called ``name`` in bfloat16 and NF4, or in one of them, on the first CUDA device.

    Raises:
        UserError: there is no such card, shapes or precision, or Triton is missing.
    """
    if not torch.cuda.is_available():
        raise UserError("This machine has no usable GPU (a CUDA device): leave --shapes out and measure the CPU.")
    if not has_triton():
        raise UserError("The GPU kernels need Triton, which torch's CUDA builds bring: pip install triton.")
    if precision not in (None, *PRECISIONS):
        raise UserError(f"'{precision}' is not measured with shapes: use {' or '.join(PRECISIONS)}.")
    asked = (precision,) if precision else PRECISIONS
    if "nf4" in asked and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("NF4 needs bitsandbytes: install it, or measure --precision bfloat16 alone.")
    return measure_shapes(config_of(name), asked, torch.device("cuda", 0), report=report)


def measure_shapes(
    config: PreTrainedConfig,
    precisions: Sequence[str],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    context: int = 512,
    settings: BenchSettings | None = None,
    make_engine: MakeEngine = CudaGraphEngine,
    copy_bytes: int = 2**32,
    report: Report = silent,
) -> ShapesTable:
    """``bench_shapes`` for any configuration; what a test replaces comes as arguments."""
    torch.manual_seed(0)
    settings = settings or BenchSettings()
    ids = torch.randint(3, config.vocab_size, (context,)).tolist()
    bandwidth = CopyBandwidth(device, copy_bytes)
    rows: list[Row] = []
    notes: list[str] = []
    report(Progress("Building a model of random weights", 0, 0, "layers"))
    lm = random_model(config, dtype, device)
    for precision in precisions:
        if precision == "nf4":
            lm = to_nf4(lm)
        engine = make_engine(lm)
        engine.warm_up(report)
        notes += _notes(engine)
        report(Progress("Checking against float64", 0, 0, "blocks"))
        notes += [
            check_blocks(engine.shared.blocks, engine.shared.choice),
            check_step(lm, engine, ids[:32], RandomShare(0.5)),
        ]
        contestants = [
            *_contestants(lm, engine, ids),
            *mlp_contestants(engine.shared.blocks, engine.shared.choice, KEEPS),
        ]
        _measure(contestants, bandwidth, settings, report)
        rows += _rows(contestants, bandwidth.gb_per_second)
        notes += _against_bitsandbytes(contestants)
        contestants.clear()  # and with them the decoders
    return ShapesTable(rows, bandwidth.gb_per_second, context, notes)


def _contestants(lm: LoadedModel, engine: CudaGraphEngine, ids: list[int]) -> Iterator[Contestant]:
    read = engine.shared.blocks.bytes_per_step(lm.model, None)
    yield Contestant("transformers", lm.precision, "dense", 1.0, read, StockGenerate(lm.model, ids))
    if lm.precision == "nf4":
        prefill = engine.prefill(ids, RandomShare(1.0))
        make = partial(_bitsandbytes, lm, engine, prefill, read)
        yield Contestant("bitsandbytes", "nf4", "dense", 1.0, read, ArmDecoder(make, 5, _ROOM))
    for keep in (1.0, *KEEPS):
        prefill = engine.prefill(ids, RandomShare(keep))
        make = partial(engine.dense_arm if keep == 1 else engine.sparse_arm, prefill, _ROOM)
        weight_bytes = make().weight_bytes
        name, method = ("dense", "dense") if keep == 1 else ("sparse", "random")
        yield Contestant(name, lm.precision, method, keep, weight_bytes, ArmDecoder(make, 5, _ROOM))


def _bitsandbytes(lm: LoadedModel, engine: CudaGraphEngine, prefill: Prefill, weight_bytes: int) -> CudaGraphArm:
    """The model's own modules, with nothing of ours in them, in fixed memory and captured as the other arms are."""
    decoder = Decoder(share_weights(lm.model), [], prefill.cache, prefill.tokens + _ROOM, engine.make_runner)
    return CudaGraphArm(decoder, prefill, weight_bytes)


def _measure(
    contestants: Sequence[Contestant], bandwidth: CopyBandwidth, settings: BenchSettings, report: Report
) -> None:
    for turn in range(settings.rounds + 1):
        report(Progress("Measuring", turn, settings.rounds, "rounds"))
        bandwidth.measure()
        for contestant in contestants:
            times = contestant.decoder.times_ms(settings.settle + settings.block)[settings.settle :]
            if turn > 0:  # the first round compiles and captures
                contestant.rounds.append(float(np.median(times)))


def _rows(contestants: Sequence[Contestant], gb_per_second: float) -> Iterator[Row]:
    for each in contestants:
        row = row_of(each, contestants, gb_per_second)
        alone = each.engine.startswith("MLP")  # blocks without the rest of a step
        yield dataclasses.replace(row, over_transformers=None) if alone else row


def _notes(engine: CudaGraphEngine) -> list[str]:
    choice, changes = engine.shared.choice, engine.shared.blocks.changes
    notes = [f"{engine.name}; tiles {choice.tiles}; ms a block: {_listed(choice)}"]
    if changes:
        worst = max(changes, key=lambda change: change.rms)
        notes.append(
            f"quantising the transposed down projections again: RMS error {worst.rms:.2e} of values of RMS "
            f"{worst.rms_weight:.2e}, largest {max(change.largest for change in changes):.2e} (worst layer)"
        )
    return notes


def _listed(choice: Choice) -> str:
    return ", ".join(f"{name} {ms:.4f}" for name, ms in choice.times_ms.items())


def _against_bitsandbytes(contestants: Sequence[Contestant]) -> list[str]:
    rival = next((each for each in contestants if each.engine == "bitsandbytes"), None)
    if rival is None:
        return []
    ours = [each for each in contestants if each.engine in ("dense", "sparse")]
    ratios = [metrics.paired_speedup(rival.rounds, each.rounds) for each in ours]
    return [
        f"nf4, {each.engine} with {each.keep:.0%} of the neurons: {ratio.median:.2f}x "
        f"({ratio.low:.2f}-{ratio.high:.2f}) bitsandbytes under the same graph"
        for each, ratio in zip(ours, ratios, strict=True)
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
