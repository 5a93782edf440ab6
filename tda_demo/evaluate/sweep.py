"""A grid of methods, settings and precisions as one tidy table: quality beside bytes.

Every row is measured against the same thing, the dense float32 model, on the same tokens; so the dense rows of other
precisions say what rounding costs, which is what one would do instead of leaving neurons out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..environment import describe
from ..errors import UserError
from ..feedforward import FeedForward
from ..methods import METHODS
from ..methods.base import Method
from ..methods.settings import parse
from ..progress import Progress, Report, silent
from .documents import Document
from .evaluation import EvaluationSettings, Unit, cut, grouped
from .ledger import Ledger, digest
from .result import byte_bound, quality
from .scoring import Score, compare, read, sparse_logits
from .shards import ALONE, Shard
from .weight_bytes import step_bytes

if TYPE_CHECKING:
    from ..models import LoadedModel

Load = Callable[[str], "LoadedModel"]  # the model in a precision
_FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One point. ``kl`` (nats/token), ``agreement`` and the perplexities are against the dense float32 model.

    ``mlp_share`` and ``byte_bound`` are against the dense model of the row's own precision; ``step_bytes`` are all
    weight bytes a step reads. ``cett`` and ``recall`` are means over layers. ``settings`` is JSON.
    """

    model: str
    method: str
    settings: str
    precision: str
    kl: float
    agreement: float
    perplexity: float
    perplexity_float32: float
    sparsity: float
    mlp_share: float
    step_bytes: int
    byte_bound: float
    cett: float
    recall: float
    documents: int
    scored_tokens: int
    prompt_tokens: int
    text: str
    tokens_sha256: str
    machine: str
    threads: int
    torch: str


class Everything:
    """The dense model as a selector: every neuron is active."""

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return torch.ones(block.d_ff, dtype=torch.bool, device=activations.device)

    def fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        return (activations != 0).sum(dim=1)


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
        if name not in METHODS:
            raise UserError(f"There is no method '{name}'; there are: {', '.join(METHODS)}.")
    return [
        METHODS[name](**parse(METHODS[name], assignments))
        for name, lists in by_method.items()
        for assignments in itertools.product(*lists)
    ]


def sweep(
    load: Load,
    methods: Sequence[Method],
    precisions: Sequence[str],
    texts: Callable[[], Iterable[Document]],
    text_name: str,
    settings: EvaluationSettings,
    *,
    ledger: Callable[[str], Ledger] = lambda key: Ledger(None, key),
    shard: Shard = ALONE,
    report: Report = silent,
) -> list[Row]:
    """The dense model and every method, at every precision. ``texts`` gives the documents anew for each precision.

    Raises:
        UserError: no text is long enough for the settings.
    """
    reference = load("float32")
    book = ledger(digest([_FORMAT, reference.fingerprint, asdict(settings)])[:16])
    rows: list[Row] = []
    for precision in precisions:
        lm = reference if precision == "float32" else load(precision)
        scorer = _Scorer(reference, lm, methods, settings, report)
        needed = settings.prompt_tokens + settings.score_tokens
        parts: list[tuple[int, list[list[dict[str, Any]]], str]] = []
        stage = f"Sweeping, {precision}"
        for index, group in enumerate(grouped(itertools.islice(texts(), settings.documents))):
            report(Progress(stage, index, 0, "batches"))
            unit = cut(lm, group, needed)
            if not shard.mine(index) or not unit.ids:
                continue
            name = digest([unit.ids, precision, [(method.name, method.settings()) for method in methods]])
            if (found := book.get(name)) is None:
                found = scorer.scores(unit)
                book.put(name, found)
            parts.append((index, found, digest(unit.ids)))
        everything = sorted(shard.gather(parts), key=lambda part: part[0])
        if not everything:
            raise UserError(
                f"No text of {text_name} is as long as {settings.prompt_tokens} prompt and "
                f"{settings.score_tokens} scored tokens."
            )
        by_method = [
            [Score(**score) for part in everything for score in part[1][which]] for which in range(len(methods) + 1)
        ]
        tokens = digest([part[2] for part in everything])
        rows += [
            _row(lm, method, scores, settings, text_name, tokens)
            for method, scores in zip([None, *methods], by_method, strict=True)
        ]
    return rows


class _Scorer:
    """The selectors of one precision, bound once."""

    def __init__(
        self,
        reference: LoadedModel,
        lm: LoadedModel,
        methods: Sequence[Method],
        settings: EvaluationSettings,
        report: Report,
    ) -> None:
        self.reference = reference
        self.lm = lm
        self.selectors = [Everything(), *(method.bind(lm, report) for method in methods)]
        self.prompt_tokens = settings.prompt_tokens

    @torch.inference_mode()
    def scores(self, unit: Unit) -> list[list[dict[str, Any]]]:
        """Of every selector (outer) on every text; one dense pass a model serves them all."""
        ids = torch.tensor(unit.ids, device=self.lm.device)
        reading = read(self.lm, self.selectors, ids, self.prompt_tokens)
        same = self.lm is self.reference
        expected = reading if same else read(self.reference, [], ids, self.prompt_tokens)
        targets = ids[:, self.prompt_tokens :]
        return [
            [
                asdict(score)
                for score in compare(expected.logits, sparse_logits(self.lm, reading, choice), targets, choice)
            ]
            for choice in reading.choices
        ]


def _row(
    lm: LoadedModel,
    method: Method | None,
    scores: list[Score],
    settings: EvaluationSettings,
    text_name: str,
    tokens: str,
) -> Row:
    widths = [block.d_ff for block in lm.blocks]
    found = quality(scores, widths)
    read_bytes = step_bytes(lm)
    dropped = [width - count for width, count in zip(widths, found.kept, strict=True)]
    environment = describe(lm.device, lm.precision)
    return Row(
        model=lm.name,
        method=method.name if method else "dense",
        settings=json.dumps(method.settings() if method else {}),
        precision=lm.precision,
        kl=found.kl,
        agreement=found.agreement,
        perplexity=found.sparse_perplexity,
        perplexity_float32=found.dense_perplexity,
        sparsity=sum(found.sparsity) / len(widths),
        mlp_share=found.mlp_share,
        step_bytes=round(read_bytes.sparse(dropped)),
        byte_bound=byte_bound(found, read_bytes, widths),
        cett=sum(found.cett) / len(widths),
        recall=sum(found.recall) / len(widths),
        documents=found.documents,
        scored_tokens=found.scored_tokens,
        prompt_tokens=settings.prompt_tokens,
        text=text_name,
        tokens_sha256=tokens,
        machine=environment.get("gpu") or environment["cpu"],
        threads=environment["threads"],
        torch=environment["torch"],
    )
