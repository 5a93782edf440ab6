"""A grid of methods, settings and precisions as one tidy table: quality beside bytes, and beside measured speed.

Every row is measured against the same thing, the dense float32 model, on the same tokens; so the dense rows of other
precisions say what rounding costs, which is what one would do instead of leaving neurons out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..calibration.documents import Document
from ..calibration.sources import PASSAGES
from ..methods import make_method, method_named
from ..methods.base import Method
from ..methods.policy import Policy
from ..methods.ranked import DensePolicy
from ..model.precision import REFERENCE
from ..support.environment import describe
from ..support.errors import UserError
from ..support.progress import Progress, Report, silent
from .bookkeeping import ALONE, Ledger, Shard, digest
from .evaluation import BATCH, EvaluationSettings, Unit, cut, in_batches
from .scoring import Reading, Score, read_texts, score_plan
from .speed import ArmSpeed, BlockTimes, SpeedSettings, dense_ms, speed_of, time_arms
from .sweep_table import SweepRow, Texts, sweep_row

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

Load = Callable[[str], "LoadedModel"]  # the model in a precision
_FORMAT = 2
_Item = TypeVar("_Item")


def grid(default: str, axes: Sequence[str]) -> list[Method]:
    """The methods of ``["cett=0.1,0.2", "griffin.keep=0.5"]``: all combinations of a method's axes.

    Raises:
        UserError: an axis is not ``[method.]name=value,value``, or names no method or setting, or a value is none.
    """
    by_method: dict[str, list[list[str]]] = {}
    for axis in axes:
        target, equals, values = axis.partition("=")
        if not equals or not values:
            raise UserError(f"'{axis}' is not an axis of a grid; write name=value,value, for example cett=0.1,0.2.")
        method, _, name = target.rpartition(".")
        by_method.setdefault(method or default, []).append([f"{name}={value}" for value in values.split(",")])
    for name in by_method:
        method_named(name)  # an unknown name is told before a setting that another method does not have
    return [
        make_method(name, assignments) for name, lists in by_method.items() for assignments in itertools.product(*lists)
    ]


def sweep(
    load: Load,
    methods: Sequence[Method],
    precisions: Sequence[str],
    texts: Callable[[], Iterable[Document]],
    text_name: str,
    settings: EvaluationSettings,
    *,
    speed: SpeedSettings | None = None,
    ledger: Callable[[str], Ledger] = lambda key: Ledger(None, key),
    shard: Shard = ALONE,
    report: Report = silent,
) -> list[SweepRow]:
    """The dense model and every method, at every precision. ``texts`` gives the documents anew for each precision.

    With ``speed``, times are taken once all quality is known; the dense models of all precisions, which then are in
    memory together, are timed in turn, so that rows of one precision compare with those of another.

    Raises:
        UserError: no text is long enough for the settings; or times are asked of several processes.
    """
    if speed and shard.world > 1:
        raise UserError("Several processes would spoil each other's times: leave out --time, or start one process.")
    reference = load(REFERENCE)
    book = ledger(digest([_FORMAT, reference.fingerprint, asdict(settings)])[:16])
    documents = sum(1 for _ in itertools.islice(texts(), settings.documents))

    def arms(precision: str) -> _Arms:
        lm = reference if precision == REFERENCE else load(precision)
        return _Arms(reference, lm, methods, settings.prompt_tokens, report)

    scored: list[tuple[list[list[Score]], Texts]] = []
    for precision in precisions:
        units = shard.gather(_score_units(arms(precision), texts, documents, settings, book, shard, report))
        if not units:
            raise _too_short(text_name, settings)
        units.sort(key=lambda unit: unit[0])
        by_arm = [
            [Score(**score) for _, scores, _ in units for score in scores[which]] for which in range(len(methods) + 1)
        ]
        tokens = digest([unit_tokens for _, _, unit_tokens in units])
        scored.append((by_arm, Texts(text_name, settings.prompt_tokens, tokens)))
    rows: list[SweepRow] = []
    together = [arms(precision) for precision in precisions] if speed else []
    dense = _dense_ms(together, texts, settings, speed, book) if speed else []
    for index, (precision, (by_arm, named)) in enumerate(zip(precisions, scored, strict=True)):
        bound = together[index] if speed else arms(precision)
        times: Sequence[ArmSpeed | None] = [None] * len(by_arm)
        if speed:
            times = _time_rows(bound, texts, settings, speed, dense[index], book, report)
        rows += [
            sweep_row(bound.lm, method, policy, scores, named, time)
            for method, policy, scores, time in zip([None, *methods], bound.policies, by_arm, times, strict=True)
        ]
    return rows


def _score_units(
    arms: _Arms,
    texts: Callable[[], Iterable[Document]],
    documents: int,
    settings: EvaluationSettings,
    book: Ledger,
    shard: Shard,
    report: Report,
) -> list[tuple[int, list[list[dict[str, Any]]], str]]:
    """This process's units: their number, the scores of every arm (outer) on every text, and an id of their tokens."""
    units = []
    for index, unit in enumerate(_units(arms.lm, texts, settings)):
        report(Progress(f"Sweeping, {arms.lm.precision}", index * BATCH, documents, "documents"))
        if not shard.mine(index) or not unit.ids:
            continue
        name = digest([unit.ids, arms.lm.precision, arms.names[1:]])
        if (scores := book.get(name)) is None:
            reading = arms.read(unit)
            scores = [[asdict(text) for text in arms.scores(reading, which)] for which in range(len(arms.names))]
            book.put(name, scores)
        units.append((index, scores, digest(unit.ids)))
    return units


def stream_sweep(
    reference: LoadedModel,
    lm: LoadedModel,
    methods: Sequence[Method],
    texts: Sequence[Document],
    text_name: str,
    settings: EvaluationSettings,
    speed: SpeedSettings,
    report: Report = silent,
) -> Iterator[SweepRow]:
    """The same rows at one precision, each as soon as it is measured: dense first, then ``methods`` in order.

    For a few texts: what reading them left behind is held in memory.

    Raises:
        UserError: no text is long enough for the settings.
    """
    arms = _Arms(reference, lm, methods, settings.prompt_tokens, report)
    units = [unit for unit in _units(lm, lambda: texts, settings) if unit.ids]
    if not units:
        raise _too_short(text_name, settings)
    prompts = _prompts(iter(units), settings, speed)
    named = Texts(text_name, settings.prompt_tokens, digest([digest(unit.ids) for unit in units]))
    arm_steps = len(units) + len(prompts)
    done, total = 0, len(units) + (1 + len(methods)) * arm_steps

    def count_steps(items: Iterable[_Item]) -> Iterator[_Item]:
        nonlocal done
        for item in items:
            report(Progress("Sweeping", done, total, "steps"))
            done += 1
            yield item

    readings = [arms.read(unit) for unit in count_steps(units)]
    times: list[list[BlockTimes]] = []
    for which, method in enumerate([None, *methods]):
        scores = [score for reading in count_steps(readings) for score in arms.scores(reading, which)]
        times.append([time_arms(lm, arms.policies[which], ids, speed) for ids in count_steps(prompts)])
        dense = median(ms for of_row in times for of_prompt in of_row for ms in of_prompt.dense)
        yield sweep_row(lm, method, arms.policies[which], scores, named, speed_of(times[-1], dense))


@dataclass(frozen=True, eq=False)
class _UnitReading:
    """What reading a unit left behind: the float32 model's logits, and the reading of the model that is judged."""

    expected: torch.Tensor
    reading: Reading
    targets: torch.Tensor


class _Arms:
    """The dense model and every method at one precision, bound once; ``which`` 0 is dense."""

    def __init__(
        self,
        reference: LoadedModel,
        lm: LoadedModel,
        methods: Sequence[Method],
        prompt_tokens: int,
        report: Report,
    ) -> None:
        self.reference = reference
        self.lm = lm
        self.names = ["dense", *([method.name, method.settings()] for method in methods)]
        self.policies: list[Policy] = [DensePolicy(), *(method.bind(lm, report, PASSAGES) for method in methods)]
        self.prompt_tokens = prompt_tokens

    def read(self, unit: Unit) -> _UnitReading:
        """One dense pass a model serves every policy."""
        ids = torch.tensor(unit.ids, device=self.lm.device)
        reading = read_texts(self.lm, self.policies, ids, self.prompt_tokens)
        expected = reading
        if self.lm is not self.reference:
            expected = read_texts(self.reference, [], ids, self.prompt_tokens, with_fidelity=False)
        return _UnitReading(expected.logits, reading, ids[:, self.prompt_tokens :])

    @torch.inference_mode()
    def scores(self, unit: _UnitReading, which: int) -> list[Score]:
        """Of one policy on every text of what was read."""
        return score_plan(self.lm, unit.expected, unit.reading, unit.reading.plans[which], unit.targets)


def _units(lm: LoadedModel, texts: Callable[[], Iterable[Document]], settings: EvaluationSettings) -> Iterator[Unit]:
    needed = settings.prompt_tokens + settings.score_tokens
    return (cut(lm, group, needed) for group in in_batches(itertools.islice(texts(), settings.documents)))


def _prompts(units: Iterator[Unit], settings: EvaluationSettings, speed: SpeedSettings) -> list[list[int]]:
    ids = itertools.chain.from_iterable(unit.ids for unit in units)
    return [text[: settings.prompt_tokens] for text in itertools.islice(ids, speed.prompts)]


def _dense_ms(
    arms: Sequence[_Arms],
    texts: Callable[[], Iterable[Document]],
    settings: EvaluationSettings,
    speed: SpeedSettings,
    book: Ledger,
) -> list[float]:
    """Of the dense model at every precision."""
    models = [of_precision.lm for of_precision in arms]
    prompt = _prompts(_units(models[0], texts, settings), settings, speed)[0]
    machines = [describe(lm.device, lm.precision) for lm in models]
    name = digest(["dense times", prompt, asdict(speed), machines])
    if (kept := book.get(name)) is None:
        kept = dense_ms(models, prompt, DensePolicy(), speed)
        book.put(name, kept)
    return kept


def _time_rows(
    arms: _Arms,
    texts: Callable[[], Iterable[Document]],
    settings: EvaluationSettings,
    speed: SpeedSettings,
    dense_ms: float,
    book: Ledger,
    report: Report,
) -> list[ArmSpeed]:
    """The speed of every arm."""
    prompts = _prompts(_units(arms.lm, texts, settings), settings, speed)
    rows: list[list[BlockTimes]] = []
    for which, arm_name in enumerate(arms.names):
        report(Progress(f"Timing, {arms.lm.precision}", which, len(arms.names), "rows"))
        name = digest(["times", arm_name, prompts, asdict(speed), describe(arms.lm.device, arms.lm.precision)])
        if (kept := book.get(name)) is None:
            kept = [asdict(time_arms(arms.lm, arms.policies[which], ids, speed)) for ids in prompts]
            book.put(name, kept)
        rows.append([BlockTimes(**times) for times in kept])
    return [speed_of(row, dense_ms) for row in rows]


def _too_short(text_name: str, settings: EvaluationSettings) -> UserError:
    return UserError(
        f"No text of {text_name} is as long as {settings.prompt_tokens} prompt and "
        f"{settings.score_tokens} scored tokens."
    )
