"""Finds presets by their rule (``methods.presets``): every candidate is scored on answers to held-out questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.sources import ANSWERS
from ..decode.choose import step_bytes
from ..methods import METHODS, TDA, Method
from ..methods.presets import MOST_KL, Preset, PresetTable
from ..support.environment import describe
from ..support.progress import Report, silent
from .budget import PLACES, with_dial_at
from .result import QualityTotals, quality
from .scoring import Score, score_texts
from .speed import SpeedSettings, time_arms
from .texts import batches

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_UNPUBLISHED = ("sketch",)
_CETTS = {"skip": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4), "4bit": (0.4, 0.5, 0.6, 0.7)}  # of TDA, by rest
_EVIDENCE = ((0.0, 0), (64.0, 0), (64.0, 16))  # prior and first


def find_presets(
    lm: LoadedModel, names: Iterable[str] = METHODS, report: Report = silent
) -> tuple[PresetTable, dict[str, list[Preset]]]:
    """The presets of the methods called ``names`` on ``lm``, and by method all candidates, whose name is empty."""
    rows: dict[str, list[Preset]] = {}
    totals: list[QualityTotals] = []
    for name in names:
        methods = candidates(METHODS[name])
        totals = score_all(lm, methods, f"Looking for presets of {name}", report)
        rows[name] = [_row(method, total) for method, total in zip(methods, totals, strict=True)]
        if name == TDA.name:
            rows[name] = timed(lm, rows[name])
    found = {name: choose(METHODS[name], rows[name]) for name in rows}
    if TDA.name in found:
        found[TDA.name] = [preset if preset.name == "exact" else _with_speed(lm, preset) for preset in found[TDA.name]]
    environment = describe(lm.device, lm.precision)
    machine = f"{environment.get('gpu') or environment['cpu']}, {environment['threads']} threads"
    table = PresetTable(lm.name, lm.precision, machine, totals[0].documents, totals[0].scored_tokens, found)
    return table, rows


def candidates(kind: type[Method]) -> list[Method]:
    """The settings among which a method's presets are found: its dial's places, and TDA's other settings with them.

    The first is exact, the last the paper's where there is one.
    """
    dial = kind.dial
    values = [round(dial.dense + share * (dial.sparsest - dial.dense), 6) for share in PLACES]
    if kind is TDA:
        grid: list[Method] = [
            dataclasses.replace(TDA(), cett=cett, rest=rest, prior=prior, first=first)
            for rest, cetts in _CETTS.items()
            for (prior, first), cett in product(_EVIDENCE, cetts)
        ]
        return [TDA(cett=0), *grid, paper(TDA)]
    return [*(with_dial_at(kind(), value) for value in values), *([paper(kind)] if has_paper(kind) else [])]


def has_paper(kind: type[Method]) -> bool:
    """Whether a paper has the method."""
    return not kind.is_control and kind.name not in _UNPUBLISHED


def paper(kind: type[Method]) -> Method:
    """The method as its paper has it: TDA's reads the prompt alone, at CETT 0.2; the others' are their defaults."""
    if kind is TDA:
        return TDA(cett=0.2, shape="uniform", prior=0.0, first=0, refresh=0, rest="skip")
    return kind()


def score_all(lm: LoadedModel, methods: Sequence[Method], stage: str, report: Report = silent) -> list[QualityTotals]:
    """Every method on answers to held-out questions; dense tokens at their beginning count as what they are."""
    policies = [method.bind(lm, report) for method in methods]
    scores: list[list[Score]] = [[] for _ in methods]
    for batch in batches(lm, ANSWERS, stage, 12, held_out=True, report=report):
        new = score_texts(lm, policies, batch.ids, batch.prompt_tokens, with_fidelity=False)
        for collected, of_batch in zip(scores, new, strict=True):
            collected += of_batch
    return [
        quality(of_policy, step_bytes(lm, policy), policy) for of_policy, policy in zip(scores, policies, strict=True)
    ]


def _row(method: Method, totals: QualityTotals) -> Preset:
    changed = _settings(method)
    return Preset("", changed, totals.kl, totals.agreement, totals.mlp_share, totals.byte_bound)


def _settings(method: Method) -> dict[str, Any]:
    return {name: value for name, value in method.settings().items() if value != ()}


def timed(lm: LoadedModel, rows: list[Preset]) -> list[Preset]:
    """TDA's ``rows`` with the speed of the one that reads fewest bytes within the KL, of each ``rest``.

    One kernel runs all of a kind, so among them bytes decide, by less than what a machine's noise leaves of a time.
    """
    within = [row for row in rows[:-1] if row.kl <= MOST_KL]
    kinds = {row.settings["rest"] for row in within}
    finalists = [
        max((row for row in within if row.settings["rest"] == kind), key=lambda row: row.byte_bound) for kind in kinds
    ]
    return [_with_speed(lm, row) if row in finalists else row for row in rows]


def _with_speed(lm: LoadedModel, row: Preset) -> Preset:
    if row.speedup is not None:
        return row
    policy = row.of(TDA).bind(lm)
    prompts = [batch.ids[0, : batch.prompt_tokens].tolist() for batch in batches(lm, ANSWERS, "", 3, held_out=True)]
    times = [time_arms(lm, policy, ids, SpeedSettings(pairs=12)) for ids in prompts]
    ratios = [dense / sparse for prompt in times for dense, sparse in zip(prompt.dense, prompt.sparse, strict=True)]
    return dataclasses.replace(row, speedup=float(np.median(ratios)))


def choose(kind: type[Method], rows: Sequence[Preset]) -> list[Preset]:
    """The presets among ``rows``, of which the first is exact and the last, where there is a paper, the paper's.

    Speed is what was measured, of rows without it the byte bound; of equals the one with the lower KL.
    """
    exact, *others = rows
    named = [dataclasses.replace(exact, name="exact")]
    own = others[:-1] if has_paper(kind) else others

    def fast(row: Preset) -> tuple[float, float]:
        return row.speedup or 0.0, row.byte_bound

    within = [row for row in own if row.kl <= MOST_KL]
    default = max((exact, *within), key=lambda row: (*fast(row), -row.kl))
    named.append(dataclasses.replace(default, name="default"))
    faster = [row for row in own if row.kl >= max(2 * default.kl, MOST_KL) and row.byte_bound > default.byte_bound]
    if faster:
        named.append(dataclasses.replace(min(faster, key=lambda row: row.kl), name="aggressive"))
    if has_paper(kind):
        named.append(dataclasses.replace(others[-1], name="paper"))
    return named
