"""The speed table of a model's shapes on a GPU: random weights, batch 1, one command that builds, checks and times.

Contestants take turns within one run, as on the CPU. Active sets are drawn at random, which scatters them as much as
can be; random weights say nothing about quality. The card's bandwidth is measured in the same rounds, of reading alone
and of copying; shares are of the higher one, and a step reads nearly all it moves.
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

from ..decode.arm import ArmDecoder, Prefill
from ..decode.gpu.decoder import CudaGraphArm, GraphDecoder
from ..decode.gpu.graph import CudaGraphEngine, supported
from ..decode.gpu.kernel_blocks import use_usual_layout
from ..decode.shared_model import share_weights
from ..kernels.gpu.device import finish, has_triton, triton_runs
from ..methods.low_bit import has_nf4_copy, nf4_rest
from ..methods.rest import Rest
from ..methods.sequence import SequencePolicy
from ..model.feedforward import FeedForward
from ..model.precision import give_back_memory
from ..model.weights import find_config
from ..stats import metrics
from ..support.errors import UserError
from ..support.progress import Progress, Report, silent
from .checks import check_blocks, check_step
from .mlp_only import mlp_contestants
from .random_model import PRECISIONS, QUANTISED, config_of, random_model
from .run import BenchSettings, Contestant, StockGenerate, row_of, take_turns
from .table import BenchRow

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..model.loading import LoadedModel

KEEPS = (0.75, 0.5, 0.3)
_KEEPS_WITH_REST = (0.5, 0.3)  # of blocks whose other neurons an NF4 copy computes
_CONTEXT, _ROOM = 512, 128  # tokens read, and decoded before an arm starts over
MakeEngine = Callable[..., CudaGraphEngine]


@dataclass(frozen=True)
class ShapesTable:
    """Rows, the bandwidths measured beside them in GB/s, the context length, and what else was found, in words."""

    rows: list[BenchRow]
    read_gb_per_second: float
    copy_gb_per_second: float
    context: int
    notes: list[str]

    @property
    def bandwidth(self) -> tuple[str, float]:
        """What the rows' shares are of: its name, and GB/s."""
        return _higher(self.read_gb_per_second, self.copy_gb_per_second)


@dataclass(frozen=True, eq=False)
class RandomShare(SequencePolicy):
    """The share ``keep`` of each block's neurons, drawn at random."""

    keep: float
    rest: Rest | None = None

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        chosen = torch.randperm(block.d_ff, device=activations.device)[: round(self.keep * block.d_ff)]
        return torch.zeros(block.d_ff, dtype=torch.bool, device=activations.device).index_fill(0, chosen, True)


class Bandwidth:
    """Bytes a second of arrays much larger than the card's cache: read by a sum, and read and written by a copy."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.source = torch.ones(nbytes // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.total = torch.empty((), device=device)
        self.reads: list[float] = []
        self.copies: list[float] = []

    def measure(self) -> None:
        self.reads.append(self._rate(lambda: torch.sum(self.source, dim=0, out=self.total), 1))
        self.copies.append(self._rate(lambda: self.target.copy_(self.source), 2))

    def _rate(self, pass_over: Callable[[], object], times_moved: int) -> float:
        passes = 4
        finish(self.source.device)
        begin = time.perf_counter()
        for _ in range(passes):
            pass_over()
        finish(self.source.device)
        return passes * times_moved * self.source.nbytes / (time.perf_counter() - begin) / 1e9

    @property
    def read_gb_per_second(self) -> float:
        return float(np.median(self.reads))

    @property
    def copy_gb_per_second(self) -> float:
        return float(np.median(self.copies))


def bench_shapes(
    shapes: str | None, model: str | None = None, precision: str | None = None, report: Report = silent
) -> ShapesTable:
    """Measures the named ``shapes``, or without a name those of ``model`` (None: the embedded one), in bfloat16 and NF4
    or in one of them, on the first CUDA device.

    Raises:
        UserError: there is no such card, shapes, model or precision; Triton is missing; the kernels do not know the
            family; or the weights do not fit the card.
    """
    if not torch.cuda.is_available():
        raise UserError("This machine has no usable GPU (a CUDA device): measure the CPU, without --shapes.")
    if not has_triton():
        raise UserError("The GPU kernels need Triton, which torch's CUDA builds bring: pip install triton.")
    device = torch.device("cuda", 0)
    if not triton_runs(device):
        raise UserError("Triton cannot run here, as the log explains: it needs a C compiler and Python's headers.")
    if precision not in (None, *PRECISIONS):
        raise UserError(f"'{precision}' is not measured with shapes: use {' or '.join(PRECISIONS)}.")
    asked = (precision,) if precision else PRECISIONS
    if not QUANTISED.keys().isdisjoint(asked) and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("NF4 needs bitsandbytes: install it, or measure --precision bfloat16 alone.")
    config = config_of(shapes) if shapes else find_config(model, report)
    context = min(_CONTEXT, config.get_text_config().max_position_embeddings - _ROOM)
    try:
        return measure_shapes(config, asked, device, context=context, report=report)
    except torch.OutOfMemoryError as error:
        raise UserError("These shapes do not fit into the GPU's memory: choose smaller ones.") from error


def measure_shapes(
    config: PreTrainedConfig,
    precisions: Sequence[str],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    context: int = _CONTEXT,
    settings: BenchSettings | None = None,
    make_engine: MakeEngine = CudaGraphEngine,
    copy_bytes: int = 2**32,
    report: Report = silent,
) -> ShapesTable:
    """``bench_shapes`` for any configuration; what a test replaces comes as arguments."""
    torch.manual_seed(0)
    settings = settings or BenchSettings()
    ids = torch.randint(3, config.vocab_size, (context,)).tolist()
    bandwidth = Bandwidth(device, copy_bytes)
    rows: list[BenchRow] = []
    notes: list[str] = []
    report(Progress("Building a model of random weights", 0, 0, "layers"))
    lm = random_model(config, dtype, device)
    for precision in precisions:
        if precision in QUANTISED:
            lm = QUANTISED[precision](lm)
            give_back_memory()
        if not supported(lm):
            raise UserError(f"The GPU kernels do not know this {config.model_type} model's layout in {precision}.")
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
            *mlp_contestants(engine.shared.blocks, engine.shared.choice, KEEPS, lm.precision),
        ]
        take_turns(contestants, bandwidth.measure, settings, report)
        _, highest = _higher(bandwidth.read_gb_per_second, bandwidth.copy_gb_per_second)
        rows += _rows(contestants, highest)
        notes += _against_bitsandbytes(contestants)
        contestants.clear()  # and with them the decoders
        del engine
    notes.append(_bandwidths(bandwidth))
    return ShapesTable(rows, bandwidth.read_gb_per_second, bandwidth.copy_gb_per_second, context, notes)


def _contestants(lm: LoadedModel, engine: CudaGraphEngine, ids: list[int]) -> Iterator[Contestant]:
    read = engine.step_bytes.dense
    yield Contestant("transformers", lm.precision, "dense", 1.0, read, StockGenerate(_stock(engine), ids))
    if lm.precision in QUANTISED:
        prefill = engine.prefill(ids, RandomShare(1.0))
        make = partial(_bitsandbytes, lm, engine, prefill, read)
        yield Contestant("bitsandbytes", lm.precision, "dense", 1.0, read, ArmDecoder(make, 5, _ROOM))
    for keep in (1.0, *KEEPS):
        prefill = engine.prefill(ids, RandomShare(keep))
        make = partial(engine.dense_arm if keep == 1 else engine.sparse_arm, prefill, _ROOM)
        weight_bytes = make().weight_bytes
        assert weight_bytes is not None  # the sets are the same for every token
        name, method = ("dense", "dense") if keep == 1 else ("sparse", "random")
        yield Contestant(name, lm.precision, method, keep, weight_bytes, ArmDecoder(make, 5, _ROOM))
    if lm.precision not in QUANTISED and has_nf4_copy(lm):
        for keep in _KEEPS_WITH_REST:
            prefill = engine.prefill(ids, RandomShare(keep, rest=nf4_rest(lm)))
            make = partial(engine.sparse_arm, prefill, _ROOM)
            weight_bytes = make().weight_bytes
            assert weight_bytes is not None
            yield Contestant("sparse, NF4 rest", lm.precision, "random", keep, weight_bytes, ArmDecoder(make, 5, _ROOM))


def _stock(engine: CudaGraphEngine) -> PreTrainedModel:
    """transformers as a user finds it: with down projections in its own layout, not by neuron as the kernels read."""
    if engine.lm.precision in QUANTISED:
        return engine.lm.model  # whose matrices stay as they are
    model = share_weights(engine.lm.model)
    use_usual_layout(model, engine.shared.usual_downs)
    return model


def _bitsandbytes(lm: LoadedModel, engine: CudaGraphEngine, prefill: Prefill, weight_bytes: int) -> CudaGraphArm:
    """bitsandbytes' own products in every linear, with norms and attention, memory and capture as in the other arms."""
    decoder = GraphDecoder(share_weights(lm.model), [], None, prefill.cache, prefill.tokens + _ROOM, engine.make_runner)
    return CudaGraphArm(decoder, prefill, weight_bytes)


def _rows(contestants: Sequence[Contestant], gb_per_second: float) -> Iterator[BenchRow]:
    for contestant in contestants:
        row = row_of(contestant, contestants, gb_per_second)
        alone = contestant.engine.startswith("MLP")  # blocks without the rest of a step
        yield dataclasses.replace(row, over_transformers=None) if alone else row


def _notes(engine: CudaGraphEngine) -> list[str]:
    choice, changes = engine.shared.choice, engine.shared.blocks.changes
    notes = [
        f"{engine.name}; ms a block: {', '.join(f'{name} {ms:.4f}' for name, ms in choice.times_ms.items())}",
        f"tiles: dense {choice.dense_tiles}, sparse {choice.sparse_tiles}",
    ]
    if changes:
        worst = max(changes, key=lambda change: change.rms)
        notes.append(
            f"quantising the transposed down projections again: RMS error {worst.rms:.2e} of values of RMS "
            f"{worst.rms_weight:.2e}, largest {max(change.largest for change in changes):.2e} (worst layer)"
        )
    return notes


def _against_bitsandbytes(contestants: Sequence[Contestant]) -> list[str]:
    rival = next((contestant for contestant in contestants if contestant.engine == "bitsandbytes"), None)
    if rival is None:
        return []
    ours = [contestant for contestant in contestants if contestant.engine in ("dense", "sparse")]
    ratios = [metrics.paired_speedup(rival.rounds, arm.rounds) for arm in ours]
    return [
        f"nf4, {arm.engine} with {arm.keep:.0%} of the neurons: {ratio.median:.2f}x "
        f"({ratio.low:.2f}-{ratio.high:.2f}) bitsandbytes under the same graph"
        for arm, ratio in zip(ours, ratios, strict=True)
    ]


def _higher(read: float, copy: float) -> tuple[str, float]:
    return ("read bandwidth", read) if read >= copy else ("copy bandwidth", copy)


def _bandwidths(measured: Bandwidth) -> str:
    return (
        f"measured bandwidth: reading {measured.read_gb_per_second:.1f} GB/s, "
        f"copying {measured.copy_gb_per_second:.1f} GB/s read and written"
    )
