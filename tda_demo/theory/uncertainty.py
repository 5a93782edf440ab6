"""Claim 2, history-related uncertainty: the same sentence after different histories.

The claim (arXiv 2406.12569, taken up in arXiv 2408.11393): the importance of weights accumulates over what was seen,
``Theta_i = |V| grad L_i + Theta_{i-1}``, so a predictor trained on past inputs cannot tell which neurons matter for
this input in models that do not use ReLU.

Our reading, two things that can be measured:

* Movement. The active set of a token is the share ``keep`` of the neurons with the largest ``|a_j| n_j``. The same
  sentence is read after histories of equally many tokens, at the same positions, behind the same first token; its sets
  after one history on its topic are the reference, and the others are compared with it token by token.
* The test-retest ceiling is the overlap after a paraphrase of the reference's history: what it lacks to 1 is movement
  that no change of meaning, topic or language explains. The floor is the overlap with another sentence at the same
  positions. Histories matter where overlap after the changed ones (another topic, another language, random tokens) is
  below the ceiling; how much they matter is the share of the way from ceiling to floor.
* Transfer. DejaVu's predictor (arXiv 2310.17157, as the method of that name trains it) is trained under one kind of
  history and tested, on other sentences, under another. The loss is recall of a predictor trained under the kind tested
  minus that of one trained under the reference kind: both see the same test, so that one kind being harder than another
  cancels. "Cannot tell" asks for more: that it loses most of what it had learnt, which is its lead over a guess that
  ignores the input, the neurons that matter most on average.

What falsifies it: overlap at the ceiling, no loss of recall or one far smaller than that lead. "No history" hides the
history from attention; the sentence stays where it is.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..cett import score, strengths
from ..estimates import LEAST_CLUSTERS
from ..model.activation import activation_name
from ..progress import Progress, Report, silent
from .findings import Finding
from .reading import Reader, Stopped, active, block_inputs, first_token, importance, plain_ids, random_ids
from .settings import UncertaintySettings
from .similarity import correlation, jaccard, ranks
from .texts import Histories, histories
from .transfer import recalls
from .uncertainty_verdict import KINDS, REFERENCE, Movement, Transfer, conclude

if TYPE_CHECKING:
    from ..models import LoadedModel


def uncertainty(
    lm: LoadedModel,
    settings: UncertaintySettings | None = None,
    report: Report = silent,
    stop: threading.Event | None = None,
) -> Finding:
    """Measures claim 2 on the project's sentences and histories."""
    settings, stop = settings or UncertaintySettings(), stop or threading.Event()
    reader = Reader(lm, stop)
    items = histories()[: settings.sentences]
    chosen = np.unique(np.linspace(0, len(reader.blocks) - 1, settings.predictor_layers).round().astype(int))
    rows = token_rows(lm, items, settings)
    length = rows[0][1]
    total = len(rows) + len(chosen)
    measured: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    references: list[list[np.ndarray]] = []
    read: list[list[torch.Tensor]] = []
    wanted: list[list[torch.Tensor]] = []
    for done, (ids, _) in enumerate(rows):
        report(Progress("Uncertainty", done, total, "steps"))
        if stop.is_set():
            break
        try:
            with block_inputs([reader.blocks[layer] for layer in chosen]) as inputs:
                last, mask = ids.shape[1] - length - 1, history_mask(ids, length, lm)
                activations = reader.read(ids, last=last, **mask).activations
        except Stopped:
            break
        read.append([inputs[layer][:, length + 1 :].float().clone() for layer in chosen])
        values = [importance(block, each) for block, each in zip(reader.blocks, activations, strict=True)]
        wanted.append([values[layer].half() for layer in chosen])
        sets = [active(each, settings.keep).cpu().numpy() for each in values]
        references.append([each[REFERENCE] for each in sets])
        measured.append(
            (
                np.stack([jaccard(each, each[REFERENCE]).mean(axis=1) for each in sets], axis=1),
                np.stack([_order(each) for each in values], axis=1),
                np.stack([_sequence_sets(each, settings.keep) for each in activations], axis=1),
            )
        )
    movement = None
    if len(measured) >= LEAST_CLUSTERS:
        sets, order, sequence = map(np.stack, zip(*measured, strict=True))
        movement = Movement(sets, order, sequence, _floor(references))
    groups = np.repeat(np.arange(len(read)), [each[0].shape[1] for each in read])
    found: list[tuple[np.ndarray, ...]] = []
    is_relu = activation_name(lm.model.config.get_text_config()).startswith("relu")
    for place in range(len(chosen)) if len(read) == len(rows) else ():
        report(Progress("Uncertainty", len(rows) + place, total, "steps"))
        x, y = (torch.cat([each[place] for each in kept], dim=1).float() for kept in (read, wanted))
        try:
            found.append(recalls(reader.blocks[chosen[place]], x, y, groups, settings.keep, is_relu=is_relu, stop=stop))
        except Stopped:
            break
    transfer = None
    if found:
        learnt, static = (np.stack(each) for each in zip(*found, strict=True))
        transfer = Transfer(tuple(int(layer) for layer in chosen[: len(found)]), learnt, static)
    report(Progress("Uncertainty", total, total, "steps"))
    return conclude(movement, transfer, lm.name, asdict(settings), complete=not stop.is_set())


def token_rows(
    lm: LoadedModel, items: Sequence[Histories], settings: UncertaintySettings
) -> list[tuple[torch.Tensor, int]]:
    """Per sentence: int64 [kinds, 1 + length + sentence tokens] and ``length``, the tokens of history, equal for all.

    A history is cut at its beginning, so that the sentence follows its end. The row of no history repeats the first
    token, which attention must be told to ignore.
    """
    texts = [[plain_ids(lm, text) for text in (i.same_topic, i.paraphrase, i.other_language)] for i in items]
    length = min(settings.history, *(len(ids) for each in texts for ids in each))
    random = torch.Generator().manual_seed(settings.seed)
    first = first_token(lm)
    rows = []
    for index, item in enumerate(items):
        same, paraphrase, language = texts[index]
        other = texts[(index + 1) % len(items)][0]
        noise = random_ids(lm, (length,), random).tolist()
        before = [same[-length:], paraphrase[-length:], [first] * length, other[-length:], language[-length:], noise]
        sentence = plain_ids(lm, " " + item.sentence)
        rows.append((torch.tensor([[first, *each, *sentence] for each in before]), length))
    return rows


def history_mask(ids: torch.Tensor, length: int, lm: LoadedModel) -> dict[str, torch.Tensor]:
    """The mask that hides the history of the row without one, and the same positions for every row."""
    mask = torch.ones_like(ids)
    mask[KINDS.index("none"), 1 : length + 1] = 0
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return {"attention_mask": mask.to(lm.device), "position_ids": positions.to(lm.device)}


def _order(values: torch.Tensor) -> np.ndarray:
    """Mean over tokens of Spearman's correlation with the reference: [kinds, tokens, d_ff] -> float64 [kinds]."""
    ranked = ranks(values.cpu().numpy())
    return correlation(ranked, ranked[REFERENCE]).mean(axis=1)


def _sequence_sets(activations: torch.Tensor, keep: float) -> np.ndarray:
    scores = torch.stack([score(strengths(each)) for each in activations])
    sets = active(scores, keep).cpu().numpy()
    return jaccard(sets, sets[REFERENCE])


def _floor(references: list[list[np.ndarray]]) -> np.ndarray:
    """Overlap of every sentence's reference sets with the next sentence's: float64 [sentences, layers]."""
    following = references[1:] + references[:1]
    return np.array(
        [
            [float(jaccard(a[: len(b)], b[: len(a)]).mean()) for a, b in zip(own, other, strict=True)]
            for own, other in zip(references, following, strict=True)
        ]
    )
