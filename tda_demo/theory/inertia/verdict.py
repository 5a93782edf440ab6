"""Claim 3 judged: from the probes' arrays to checks, notes and tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...stats.estimates import LEAST_CLUSTERS, Estimate, mean, means, regression
from ..experiment import Experiment
from ..findings import Check, Finding, Table, check_above_zero, columns
from .probes import Drift, Neighbours, Swap, ranges

_KINDS = ("natural", "random")
_WAYS = ("parallel", "one by one")
_ROUNDING = 1e-3  # of the activations' norm: float32 stays far below it, half the precision does not


@dataclass
class Measurements:
    """What the probes returned; None where Stop came first. ``place`` is where the echo's token was inserted."""

    place: int
    natural_swap: Swap | None = None
    random_swap: Swap | None = None
    neighbours: Neighbours | None = None
    echo: np.ndarray | None = None
    drift: Drift | None = None


def conclude(measured: Measurements, model: str, experiment: Experiment, *, complete: bool = True) -> Finding:
    """The finding from whatever had been measured."""
    checks: list[Check] = []
    notes: list[str] = []
    tables: list[Table] = []
    both = zip(_KINDS, (measured.natural_swap, measured.random_swap), strict=True)
    swaps = {kind: swap for kind, swap in both if swap is not None}
    if swaps:
        checks += [_swap_check(kind, swap) for kind, swap in swaps.items()]
        notes += [_swap_note(kind, swap) for kind, swap in swaps.items()]
        tables += [_swap_table(swaps), _regression_table(swaps)]
    if measured.neighbours is not None:
        checks += [_neighbour_check(measured.neighbours, kind) for kind in range(2)]
        notes.append(_neighbour_note(measured.neighbours))
        tables.append(_neighbour_table(measured.neighbours))
    if measured.echo is not None:
        bins = ranges(measured.echo.shape[2])
        notes.append(_echo_note(measured.echo, bins))
        tables.append(_echo_table(measured.echo, bins))
    if measured.drift is not None and len(measured.drift.own) >= LEAST_CLUSTERS:
        bins = ranges(int(measured.drift.places[-1]) + 1)
        checks += _drift_checks(measured.drift, bins)
        notes.append(_drift_note(measured.drift, bins))
        tables += _drift_tables(measured.drift, bins)
    return experiment.finding(model, checks, notes, tables, complete=complete)


def _swap_check(kind: str, swap: Swap) -> Check:
    lead = swap.overlap[:, 0] - swap.overlap[:, 1]
    name = f"The prefix decides more than the token, {kind} tokens (Jaccard, same prefix - same token)"
    return check_above_zero(name, "layers", "pairs of sequences", lead)


def _swap_note(kind: str, swap: Swap) -> str:
    prefix, token, neither = swap.overlap.mean(axis=(0, 2))
    shared, meaning = _within_pairs(swap.responses.mean(axis=2), swap.predictors)
    return (
        f"Overlap with {kind} tokens: {prefix:.3f} same prefix and another token, {token:.3f} same token after another "
        f"prefix, {neither:.3f} neither shared; regression within pairs, mean over layers: sharing the prefix adds "
        f"{_with_sign(shared)}, token similarity from 0 to 1 adds {_with_sign(meaning)}, n = {meaning.n} pairs of "
        "sequences"
    )


def _within_pairs(responses: np.ndarray, predictors: np.ndarray) -> list[Estimate]:
    """What a shared prefix and a similar token add to the overlap, both less their means over the pair of sequences.

    Pairs differ in how alike all their sets are; without that, the difference between pairs passes for an effect.

    Args:
        responses: float [pairs, rows].
        predictors: float [pairs, rows, 2].
    """
    centred = [values - values.mean(axis=1, keepdims=True) for values in (responses, predictors)]
    return regression(list(centred[0]), list(centred[1]))[1:]  # the intercept is zero now


def _neighbour_check(neighbours: Neighbours, kind: int) -> Check:
    lead = neighbours.sets[:, kind, 0] - neighbours.apart[:, kind]
    name = f"Neighbours in {_KINDS[kind]} sequences are more alike than tokens of different ones (Jaccard)"
    return check_above_zero(name, "layers", "sequences", lead)


def _neighbour_note(neighbours: Neighbours) -> str:
    cells = ", ".join(
        f"{kind} {way} {neighbours.sets[:, k, w].mean():.3f}"
        for k, kind in enumerate(_KINDS)
        for w, way in enumerate(_WAYS)
    )
    difference = neighbours.difference
    same = "; the two ways of feeding are one computation" if difference.max() < _ROUNDING else ""
    return (
        f"Neighbours' Jaccard: {cells}; fed one by one, activations differ from parallel ones by "
        f"{difference.mean():.1e} of their norm (at most {difference.max():.1e} in a layer of a sequence) and "
        f"{neighbours.changed.mean():.4%} of the active-set members change, n = {len(neighbours.sets)} sequences of "
        f"each kind{same}"
    )


def _echo_note(changed: np.ndarray, bins: list[range]) -> str:
    def at(span: range, kind: int) -> float:
        return float(changed[:, kind, span.start : span.stop].mean())

    difference = mean((changed[:, 0] - changed[:, 1]).mean(axis=(1, 2)))
    return (
        f"An inserted word of another text changes {at(bins[0], 0):.1%} of the next token's set and "
        f"{at(bins[-1], 0):.1%} at {_name(bins[-1])} after it, a word of the same text {at(bins[0], 1):.1%} and "
        f"{at(bins[-1], 1):.1%} (1 - Jaccard); the difference over all positions is {_with_sign(difference)}, "
        f"n = {difference.n} sequences"
    )


def _drift_checks(drift: Drift, bins: list[range]) -> list[Check]:
    rivals = {"another prompt's set": drift.other, "one chosen from answers to other prompts": drift.prior}
    return [
        check_above_zero(
            f"A prompt's set covers what follows it better than {rival} does",
            "ranges of tokens",
            "prompts",
            _bin_means((drift.own - values).mean(axis=2), bins, drift.places),
        )
        for rival, values in rivals.items()
    ]


def _drift_note(drift: Drift, bins: list[range]) -> str:
    own, other, prior = (
        _bin_means(values.mean(axis=2), bins, drift.places).mean(axis=0)
        for values in (drift.own, drift.other, drift.prior)
    )
    return (
        f"Share of a generated token's set that the prompt's set covers: {own[0]:.3f} at token 1 and {own[-1]:.3f} at "
        f"{_name(bins[-1])}; another prompt's set covers {other[0]:.3f} and {other[-1]:.3f}, "
        f"one chosen from answers to other prompts {prior[0]:.3f} and {prior[-1]:.3f}, n = {len(drift.own)} prompts"
    )


def _swap_table(swaps: dict[str, Swap]) -> Table:
    shared = ("same prefix", "same token", "neither")
    return _stack(
        "swap",
        "Jaccard overlap of the last token's active sets",
        [
            ({"tokens": kind, "shared": name}, columns("Jaccard", means(swap.overlap[:, place])))
            for kind, swap in swaps.items()
            for place, name in enumerate(shared)
        ],
    )


def _regression_table(swaps: dict[str, Swap]) -> Table:
    parts: list[tuple[dict[str, str], dict[str, list[float]]]] = []
    for kind, swap in swaps.items():
        layers = range(swap.responses.shape[2])
        fits = [_within_pairs(swap.responses[:, :, layer], swap.predictors) for layer in layers]
        names = ("prefix", "meaning")
        values = {key: v for i, name in enumerate(names) for key, v in columns(name, [f[i] for f in fits]).items()}
        parts.append(({"tokens": kind}, values))
    return _stack(
        "regression",
        "Overlap regressed, within pairs of sequences, on a shared prefix and on embedding similarity",
        parts,
    )


def _neighbour_table(neighbours: Neighbours) -> Table:
    parts = []
    for k, kind in enumerate(_KINDS):
        for w, way in enumerate(_WAYS):
            values = {
                **columns("Jaccard", means(neighbours.sets[:, k, w])),
                **columns("cosine", means(neighbours.cosine[:, k, w])),
                **columns("Jaccard of different sequences", means(neighbours.apart[:, k])),
                "difference from parallel / norm": (neighbours.difference[:, k].mean(axis=0) * w).tolist(),
                "members changed": (neighbours.changed[:, k].mean(axis=0) * w).tolist(),
            }
            parts.append(({"tokens": kind, "fed": way}, values))
    return _stack("neighbours", "Consecutive tokens' activations and active sets", parts)


def _echo_table(changed: np.ndarray, bins: list[range]) -> Table:
    after = np.arange(changed.shape[2])
    parts = [
        (
            {"inserted": name},
            {
                "tokens after": [_name(span) for span in bins],
                "up to token": [span.stop for span in bins],
                **columns("changed", means(_bin_means(changed[:, kind].mean(axis=2), bins, after))),
            },
        )
        for kind, name in enumerate(("a word of another text", "a word of the same text"))
    ]
    return _stack("echo", "Share of later active sets that an inserted word changes (1 - Jaccard)", parts, layers=False)


def _drift_tables(drift: Drift, bins: list[range]) -> list[Table]:
    own, other, prior = (
        _bin_means(values.mean(axis=2), bins, drift.places) for values in (drift.own, drift.other, drift.prior)
    )
    by_layer = _bin_means(drift.own.mean(axis=0).T, bins, drift.places).T  # [ranges, layers]
    title = "Share of a generated token's active set that a prompt's set covers"
    per_layer = {
        "layer": list(range(drift.own.shape[2])),
        **{_name(s): v.tolist() for s, v in zip(bins, by_layer, strict=True)},
    }
    values = {"tokens": [_name(s) for s in bins], "up to token": [span.stop for span in bins]}
    values |= {
        **columns("own prompt", means(own)),
        **columns("another prompt", means(other)),
        **columns("prior", means(prior)),
    }
    return [Table("drift", title, values), Table("drift by layer", title + ", own prompt", per_layer)]


def _stack(name: str, title: str, parts: list[tuple[dict[str, str], dict[str, list]]], *, layers: bool = True) -> Table:
    """Parts put one under the other, each led by its labels and, where its rows are layers, their numbers."""
    whole: dict[str, list] = {}
    for labels, values in parts:
        rows = len(next(iter(values.values())))
        leading = {key: [label] * rows for key, label in labels.items()}
        for key, column in (leading | ({"layer": list(range(rows))} if layers else {}) | values).items():
            whole.setdefault(key, []).extend(column)
    return Table(name, title, whole)


def _bin_means(values: np.ndarray, bins: list[range], places: np.ndarray) -> np.ndarray:
    """Means over ranges of tokens, ``places`` int [tokens] saying which these are: [rows, tokens] -> [rows, ranges]."""
    inside = [(places >= span.start) & (places < span.stop) for span in bins]
    return np.stack([values[:, mask].mean(axis=1) for mask in inside], axis=1)


def _name(span: range) -> str:
    return f"token {span.stop}" if len(span) == 1 else f"tokens {span.start + 1} to {span.stop}"


def _with_sign(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
