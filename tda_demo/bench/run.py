"""Speed tables: every contestant decodes the same continuation in turn, a few tokens at a time, in one run.

Interleaved, so that whatever else the machine does falls on all of them alike. The machine's read bandwidth is measured
in the same rounds. Sparse rows hold real active sets, GRIFFIN's: the share ``keep`` of each layer's neurons that score
highest on a real prompt, as packed copies; "in place" reads them from among all, as sets that change at every step
would be: each neuron in one piece, the next one anywhere.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..decode.arm import ArmDecoder
from ..decode.choose import engine_for
from ..decode.cpu.compiled_step import CpuStepEngine
from ..decode.weight_bytes import bytes_per_step
from ..methods import GRIFFIN
from ..model.loading import EMBEDDED, LoadedModel, load_model
from ..model.precision import PRECISIONS, REFERENCE, available_precisions, choose_precision
from ..stats import metrics
from ..support.progress import Progress, Report, silent
from .table import BenchRow

KEEPS = (0.75, 0.5, 0.3)
_IN_PLACE_KEEP = 0.5
_RIVAL = {  # the engine that a speedup is over
    "sparse": "dense",
    "sparse, NF4 rest": "dense",
    "in place": "dense",
    "MLP sparse": "MLP dense",
}
_PROMPT = "Explain in a few paragraphs why the sky is blue in the daytime and red in the evening."
_STOCK = "bfloat16"  # of transformers' row that the others are compared with, which is always there
_ROOM = 128  # tokens an arm decodes before it starts over from the prompt


@dataclass(frozen=True)
class BenchSettings:
    """``rounds`` turns of ``block`` timed tokens, after ``settle`` untimed ones that bring caches and threads back."""

    rounds: int = 16
    block: int = 8
    settle: int = 2


@dataclass(frozen=True)
class Table:
    """The rows, and the read bandwidth measured in the same rounds, in GB/s."""

    rows: list[BenchRow]
    read_gb_per_second: float


class TimedDecoder(Protocol):
    """Something that decodes ``count`` tokens and tells what each took."""

    def times_ms(self, count: int) -> list[float]: ...


@dataclass(eq=False)
class Contestant:
    """An entry with its measurements; ``weight_bytes`` is what one token reads."""

    engine: str
    precision: str
    method: str
    keep: float
    weight_bytes: int
    decoder: TimedDecoder
    rounds: list[float] = field(default_factory=list)


class StockGenerate:
    """transformers' own ``generate``; a token's time is the gap between two of its tokens."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self.model, self.ids = model, torch.tensor([ids], device=model.device)

    def times_ms(self, count: int) -> list[float]:
        moments: list[float] = []

        class Stamps:
            def put(self, _: object) -> None:
                moments.append(time.perf_counter())

            def end(self) -> None:
                pass

        self.model.generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=count + 1,
            min_new_tokens=count + 1,
            do_sample=False,
            streamer=Stamps(),
        )
        return (np.diff(moments[1:]) * 1e3).tolist()  # the first call hands over the prompt


class LlamaCpp:
    """llama-cpp-python on the embedded model's own GGUF file."""

    def __init__(self, path: Path, ids: list[int], threads: int) -> None:
        from llama_cpp import Llama  # type: ignore[import-not-found]

        self.llama = Llama(str(path), n_ctx=1024, n_threads=threads, verbose=False)
        self.ids = ids

    def times_ms(self, count: int) -> list[float]:
        self.llama.reset()
        self.llama.eval(self.ids)
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            self.llama.eval([int(self.llama.sample(temp=0.0))])
            times.append((time.perf_counter() - begin) * 1e3)
        return times


class _ReadBandwidth:
    """How fast the cores read an array much larger than their caches; measured as the contestants are."""

    def __init__(self, settings: BenchSettings) -> None:
        self.settings = settings
        self.array = torch.ones(256 * 2**20 // 4)
        self.readings: list[float] = []

    def measure(self) -> None:
        rates = [self._rate() for _ in range(self.settings.settle + self.settings.block)]
        self.readings.append(float(np.median(rates[self.settings.settle :])))

    def _rate(self) -> float:
        begin = time.perf_counter()
        self.array.sum()
        return self.array.nbytes / (time.perf_counter() - begin) / 1e9

    @property
    def gb_per_second(self) -> float:
        return float(np.median(self.readings))


def bench(
    name: str | None = None,
    precision: str | None = None,
    settings: BenchSettings | None = None,
    report: Report = silent,
) -> Table:
    """Measures stock transformers, the dense arm and packed active sets, at one CPU precision or at all of them.

    Raises:
        UserError: the model cannot be had, or there is no such precision.
    """
    settings = settings or BenchSettings()
    cpu = torch.device("cpu")
    precisions = (choose_precision(precision, cpu),) if precision else available_precisions("cpu")
    contestants = list(_contestants(name, precisions, report))
    bandwidth = _ReadBandwidth(settings)
    take_turns(contestants, bandwidth.measure, settings, report)
    rows = [row_of(contestant, contestants, bandwidth.gb_per_second) for contestant in contestants]
    return Table(rows, bandwidth.gb_per_second)


def take_turns(
    contestants: Sequence[Contestant], measure_bandwidth: Callable[[], None], settings: BenchSettings, report: Report
) -> None:
    """Fills in the ``rounds`` of every contestant; the bandwidth is measured at the start of each."""
    for turn in range(settings.rounds + 1):
        report(Progress("Measuring", turn, settings.rounds, "rounds"))
        measure_bandwidth()
        for contestant in contestants:
            times = contestant.decoder.times_ms(settings.settle + settings.block)[settings.settle :]
            if turn > 0:  # the first round compiles, captures, maps pages and wakes threads
                contestant.rounds.append(float(np.median(times)))


def _contestants(name: str | None, precisions: Sequence[str], report: Report) -> Iterator[Contestant]:
    lm = load_model(name, precision=REFERENCE, device="cpu", report=report)
    ids = lm.prompt_ids(_PROMPT)
    yield from _stock(lm, ids, precisions)
    if lm.name == EMBEDDED and importlib.util.find_spec("llama_cpp"):
        yield _llama_cpp(ids, report)
    for precision in precisions:
        yield from _arms(load_model(name, precision=precision, device="cpu"), ids, report)


def _stock(lm: LoadedModel, ids: list[int], precisions: Sequence[str]) -> Iterator[Contestant]:
    """transformers as a user finds it, in torch's own dtypes."""
    from transformers import AutoModelForCausalLM

    for name, precision in PRECISIONS.items():
        if precision.dtype and (name in precisions or name == _STOCK):
            model = AutoModelForCausalLM.from_config(lm.model.config, dtype=getattr(torch, precision.dtype)).eval()
            model.load_state_dict(lm.model.state_dict())
            yield Contestant("transformers", name, "dense", 1.0, bytes_per_step(model), StockGenerate(model, ids))


def _llama_cpp(ids: list[int], report: Report) -> Contestant:
    from ..model.weights.embedded import embedded_gguf

    path = embedded_gguf(report)
    return Contestant(
        "llama.cpp", "Q4_1", "dense", 1.0, path.stat().st_size, LlamaCpp(path, ids, torch.get_num_threads())
    )


def _arms(lm: LoadedModel, ids: list[int], report: Report) -> Iterator[Contestant]:
    engine = engine_for(lm)
    engine.warm_up(report)
    for keep in (1.0, *KEEPS):
        prefill = engine.prefill(ids, GRIFFIN(keep).bind(lm))
        make = partial(engine.dense_arm if keep == 1 else engine.sparse_arm, prefill, _ROOM)
        arm = make()
        decoder = ArmDecoder(make, int(prefill.logits.argmax()), _ROOM)
        engine_name, method = ("dense", "dense") if keep == 1 else ("sparse", "griffin")
        yield Contestant(engine_name, lm.precision, method, keep, arm.weight_bytes or 0, decoder)
    if isinstance(engine, CpuStepEngine):
        prefill = engine.prefill(ids, GRIFFIN(_IN_PLACE_KEEP).bind(lm))
        decoder = ArmDecoder(partial(engine.in_place_arm, prefill, _ROOM), int(prefill.logits.argmax()), _ROOM)
        bytes_read = engine.in_place_arm(prefill, 1).weight_bytes or 0
        yield Contestant("in place", lm.precision, "griffin", _IN_PLACE_KEEP, bytes_read, decoder)


def row_of(contestant: Contestant, contestants: Sequence[Contestant], read_gb_per_second: float) -> BenchRow:
    """The table's line of ``contestant``, compared with others of its run."""

    def first(engine: str, precision: str) -> Contestant | None:
        return next((rival for rival in contestants if (rival.engine, rival.precision) == (engine, precision)), None)

    def over(engine: str, precision: str) -> float | None:
        rival = first(engine, precision)
        return float(np.median(rival.rounds) / np.median(contestant.rounds)) if rival else None

    ms = float(np.median(contestant.rounds))
    gb_per_second = contestant.weight_bytes / ms / 1e6
    speedup = bound = None
    dense = first(_RIVAL.get(contestant.engine, ""), contestant.precision)
    if dense is not None:
        speedup = metrics.paired_speedup(dense.rounds, contestant.rounds)
        bound = metrics.byte_bound(dense.weight_bytes, contestant.weight_bytes)
    return BenchRow(
        engine=contestant.engine,
        precision=contestant.precision,
        method=contestant.method,
        keep=contestant.keep,
        ms_per_token=ms,
        tokens_per_second=1000 / ms,
        gb_per_second=gb_per_second,
        read_share=gb_per_second / read_gb_per_second,
        speedup=speedup.median if speedup else None,
        low=speedup.low if speedup else None,
        high=speedup.high if speedup else None,
        byte_bound=bound,
        efficiency=metrics.efficiency(speedup.median, bound) if speedup and bound else None,
        over_transformers=over("transformers", _STOCK),
        over_llama_cpp=over("llama.cpp", "Q4_1"),
        n=len(contestant.rounds),
    )
