"""Claim 2 judged: from the measured arrays to checks, notes and tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...stats.estimates import means
from ..experiment import Experiment
from ..findings import Check, Finding, Table, check_above_zero, columns
from ..reading import chance_jaccard

KINDS = ("same topic", "paraphrase", "none", "other topic", "other language", "random tokens")
REFERENCE, CEILING = KINDS.index("same topic"), KINDS.index("paraphrase")
CHANGED = tuple(KINDS.index(kind) for kind in ("other topic", "other language", "random tokens"))
_CHANGED_NAMES = ("another topic", "another language", "random tokens")


@dataclass(frozen=True, eq=False)
class Movement:
    """Overlap with the reference, float64 [sentences, kinds, layers] each, and the floor's, [sentences, layers].

    ``sets`` Jaccard of token-level sets, ``order`` Spearman's correlation of importances over neurons, ``sequence``
    Jaccard of the sets chosen once for the sentence by TDA's score.
    """

    sets: np.ndarray
    order: np.ndarray
    sequence: np.ndarray
    floor: np.ndarray


@dataclass(frozen=True, eq=False)
class Transfer:
    """Recall float64 [layers, sentences, kinds trained under, kinds tested under], and of the static guess."""

    layers: tuple[int, ...]
    learnt: np.ndarray
    static: np.ndarray


def conclude(
    movement: Movement | None,
    transfer: Transfer | None,
    model: str,
    experiment: Experiment,
    keep: float,
    *,
    complete: bool = True,
) -> Finding:
    """The finding from the arrays; what is None had not been measured when Stop came. ``keep`` is the experiment's."""
    checks: list[Check] = []
    notes: list[str] = []
    tables: list[Table] = []
    if movement is not None:
        checks += [
            _below_ceiling(f"Sets overlap less after {history} than after a paraphrase", movement.sets, kind)
            for kind, history in zip(CHANGED, _CHANGED_NAMES, strict=True)
        ]
        checks.append(
            _below_ceiling(
                "Importances correlate less after these three than after a paraphrase", movement.order, *CHANGED
            )
        )
        notes.append(_movement_note(movement, keep))
        tables.append(_movement_table(movement))
    if transfer is not None:
        lost, learnt = _losses(transfer.learnt), _leads(transfer)
        checks += [
            _check("A predictor trained under another kind of history has less recall", lost),
            _check("It loses more than half of what it had learnt (recall lost - half the lead)", lost - learnt / 2),
        ]
        notes.append(_transfer_note(transfer))
        tables.append(_transfer_table(transfer))
    return experiment.finding(model, checks, notes, tables, complete=complete)


def _check(name: str, values: np.ndarray) -> Check:
    """Whether ``values`` float64 [sentences, layers] are above zero."""
    return check_above_zero(name, "layers", "sentences", values)


def _below_ceiling(name: str, overlap: np.ndarray, *kinds: int) -> Check:
    return _check(name, overlap[:, CEILING] - overlap[:, kinds].mean(axis=1))


def _losses(recall: np.ndarray) -> np.ndarray:
    """Recall lost by training under the reference kind and not under the kind tested: float64 [sentences, layers]."""
    lost = [recall[:, :, kind, kind] - recall[:, :, REFERENCE, kind] for kind in CHANGED]
    return np.mean(lost, axis=0).T


def _leads(transfer: Transfer) -> np.ndarray:
    """Recall of predictors tested under the kind they were trained under, less that of the static guess: likewise."""
    lead = transfer.learnt - transfer.static
    return np.mean([lead[:, :, kind, kind] for kind in CHANGED], axis=0).T


def _movement_note(movement: Movement, keep: float) -> str:
    overlap = movement.sets.mean(axis=2)  # [sentences, kinds]
    ceiling, floor = overlap[:, CEILING].mean(), movement.floor.mean()
    changed = ", ".join(f"{KINDS[kind]} {overlap[:, kind].mean():.3f}" for kind in (KINDS.index("none"), *CHANGED))
    share = (ceiling - overlap[:, CHANGED].mean()) / (ceiling - floor) if ceiling > floor else float("nan")
    moved = f"changed histories go {share:.0%} of the way from ceiling to floor" if ceiling > floor else "no room below"
    return (
        f"Jaccard overlap: ceiling (paraphrase) {ceiling:.3f}, {changed}, floor (another sentence) {floor:.3f}, chance "
        f"{chance_jaccard(keep):.3f}; {moved}, n = {len(overlap)} sentences"
    )


def _transfer_note(transfer: Transfer) -> str:
    recall = transfer.learnt.mean(axis=(0, 1))
    static = transfer.static.mean(axis=(0, 1))
    same = np.mean([recall[kind, kind] for kind in CHANGED])
    reference = np.mean([recall[REFERENCE, kind] for kind in CHANGED])
    guess = np.mean([static[kind, kind] for kind in CHANGED])
    return (
        f"Recall under changed histories: {same:.1%} where the predictor was trained under them, {reference:.1%} where "
        f"under the reference, {guess:.1%} for the neurons that matter most on average under them, whatever the input, "
        f"n = {transfer.learnt.shape[1]} sentences and {len(transfer.layers)} layers"
    )


def _movement_table(movement: Movement) -> Table:
    parts: dict[str, list] = {"history": [], "layer": []}
    layers = movement.sets.shape[2]
    for kind, name in enumerate(KINDS):
        if kind == REFERENCE:
            continue
        overlaps = {
            **columns("Jaccard", means(movement.sets[:, kind])),
            **columns("rank correlation", means(movement.order[:, kind])),
            **columns("sequence-level Jaccard", means(movement.sequence[:, kind])),
            **columns("floor", means(movement.floor)),
        }
        for key, values in {"history": [name] * layers, "layer": range(layers), **overlaps}.items():
            parts.setdefault(key, []).extend(values)
    return Table("movement", "Overlap of the sentence's active sets with those after the reference history", parts)


def _transfer_table(transfer: Transfer) -> Table:
    rows = [
        (layer, trained, tested) for layer in range(len(transfer.layers)) for trained in range(6) for tested in range(6)
    ]
    recall = means(np.stack([transfer.learnt[layer, :, trained, tested] for layer, trained, tested in rows], axis=1))
    static = means(np.stack([transfer.static[layer, :, trained, tested] for layer, trained, tested in rows], axis=1))
    return Table(
        "transfer",
        "Recall of predicted active sets on sentences not trained on",
        {
            "layer": [transfer.layers[layer] for layer, _, _ in rows],
            "trained under": [KINDS[trained] for _, trained, _ in rows],
            "tested under": [KINDS[tested] for _, _, tested in rows],
            **columns("recall", recall),
            **columns("recall of the static guess", static),
        },
    )
