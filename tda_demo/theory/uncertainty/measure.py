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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...calibration.cett import score, strengths
from ...methods.settings import Range
from ...methods.trained.dejavu import PredictorRecipe
from ...methods.trained.recipe import Lesson
from ...model.configuration import activation_name
from ...model.feedforward import FeedForward
from ...stats.estimates import LEAST_CLUSTERS
from ...support.lazy import torch
from ...support.progress import Progress, Report, silent
from ..experiment import Claim, Experiment, NumberInput, keep_setting, number_setting, seed_setting
from ..findings import Finding
from ..reading import (
    Reader,
    Stopped,
    active,
    correlation,
    first_token,
    importance,
    jaccard,
    last_inputs,
    plain_ids,
    random_ids,
    ranks,
)
from ..texts import SENTENCES, Histories, histories
from .verdict import KINDS, REFERENCE, Movement, Transfer, conclude

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


RECIPE = PredictorRecipe()
FOLDS = 4


@dataclass(frozen=True)
class Uncertainty(Experiment):
    """``history`` tokens at most before each sentence; ``keep``, the share of neurons in an active set;
    ``predictor_layers`` layers, evenly spread, get a predictor."""

    name: ClassVar[str] = "uncertainty"
    title: ClassVar[str] = "Uncertainty"
    summary: ClassVar[str] = "the same sentence after different histories"
    claim: ClassVar[Claim] = Claim(
        "Which neurons matter depends on what was read before, because weight importance accumulates over the history. "
        "A predictor trained on past inputs therefore cannot tell which neurons matter for this one, unless the model "
        "uses ReLU.",
        "The active sets of the same sentence overlap less after a changed history than after a paraphrased one, and a "
        "predictor trained under one kind of history loses recall under another, most of what it had learnt.",
    )
    duration: ClassVar[str] = "well under a minute on two cores"

    sentences: int = number_setting(
        16, "how many", Range(LEAST_CLUSTERS, SENTENCES), NumberInput("Sentences", 4, SENTENCES)
    )
    history: int = number_setting(36, "tokens before each", Range(1, inf), NumberInput("Tokens of history", 4, 64))
    predictor_layers: int = number_setting(
        10, "layers that get a predictor, evenly spread", Range(1, inf), NumberInput("Layers with a predictor", 1, 32)
    )
    keep: float = keep_setting()
    seed: int = seed_setting()

    def run(
        self,
        lm: LoadedModel,
        text: Sequence[str] | str | None = None,
        report: Report = silent,
        stop: threading.Event | None = None,
        on_point: Callable[[Any], None] | None = None,
    ) -> Finding:
        """Measures claim 2 on the project's sentences and histories."""
        stop = stop or threading.Event()
        reader = Reader(lm, stop)
        chosen = np.unique(np.linspace(0, len(reader.blocks) - 1, self.predictor_layers).round().astype(int))
        rows = token_rows(lm, histories()[: self.sentences], self)
        total = len(rows) + len(chosen)

        def tick(done: int) -> None:
            report(Progress("Uncertainty", done, total, "steps"))

        read: list[_Sentence] = []
        for done, (ids, length) in enumerate(rows):
            tick(done)
            if stop.is_set():
                break
            try:
                read.append(_read(lm, reader, ids, length, chosen, self.keep))
            except Stopped:
                break
        movement = _movement(read) if len(read) >= LEAST_CLUSTERS else None
        transfer = None
        if len(read) == len(rows):
            is_relu = activation_name(lm.model.config.get_text_config()).startswith("relu")
            transfer = _transfer(
                reader, read, chosen, self.keep, lambda place: tick(len(rows) + place), is_relu=is_relu
            )
        tick(total)
        return conclude(movement, transfer, lm.name, self, self.keep, complete=not stop.is_set())


@dataclass(frozen=True, eq=False)
class _Sentence:
    """What is kept of one sentence read after every kind of history.

    ``sets``, ``order`` and ``sequence`` are the overlaps of ``Movement``, float64 [kinds, layers]; ``reference`` the
    sets after the reference history, bool [tokens, d_ff] per layer. Of the layers that get a predictor: ``inputs``,
    what the block read, float32 [kinds, tokens, d_model] each, and ``importances``, float16 [kinds, tokens, d_ff] each.
    """

    sets: np.ndarray
    order: np.ndarray
    sequence: np.ndarray
    reference: list[np.ndarray]
    inputs: list[torch.Tensor]
    importances: list[torch.Tensor]


def _read(
    lm: LoadedModel, reader: Reader, ids: torch.Tensor, length: int, chosen: np.ndarray, keep: float
) -> _Sentence:
    """Reads one row of ``token_rows``; ``chosen`` are the layers that get a predictor.

    Raises:
        Stopped: the reader's ``stop`` was set.
    """
    with last_inputs([reader.blocks[layer] for layer in chosen]) as inputs:
        last, mask = ids.shape[1] - length - 1, history_mask(ids, length, lm)
        activations = reader.read(ids, last=last, **mask).activations
    importances = [importance(block, values) for block, values in zip(reader.blocks, activations, strict=True)]
    sets = [active(values, keep).cpu().numpy() for values in importances]
    return _Sentence(
        sets=np.stack([jaccard(masks, masks[REFERENCE]).mean(axis=1) for masks in sets], axis=1),
        order=np.stack([_order(values) for values in importances], axis=1),
        sequence=np.stack([_sequence_sets(values, keep) for values in activations], axis=1),
        reference=[masks[REFERENCE] for masks in sets],
        inputs=[inputs[layer][:, length + 1 :].float().clone() for layer in chosen],
        importances=[importances[layer].half() for layer in chosen],
    )


def _movement(read: Sequence[_Sentence]) -> Movement:
    return Movement(
        sets=np.stack([sentence.sets for sentence in read]),
        order=np.stack([sentence.order for sentence in read]),
        sequence=np.stack([sentence.sequence for sentence in read]),
        floor=_floor([sentence.reference for sentence in read]),
    )


def _transfer(
    reader: Reader,
    read: Sequence[_Sentence],
    chosen: np.ndarray,
    keep: float,
    tick: Callable[[int], None],
    *,
    is_relu: bool,
) -> Transfer | None:
    """Trains and tests the predictors layer by layer; None where Stop came before the first was done."""
    groups = np.repeat(np.arange(len(read)), [sentence.inputs[0].shape[1] for sentence in read])
    results: list[tuple[np.ndarray, ...]] = []
    for place, layer in enumerate(chosen):
        tick(place)
        x = torch.cat([sentence.inputs[place] for sentence in read], dim=1).float()
        y = torch.cat([sentence.importances[place] for sentence in read], dim=1).float()
        try:
            results.append(
                transfer_recalls(reader.blocks[layer], x, y, groups, keep, is_relu=is_relu, stop=reader.stop)
            )
        except Stopped:
            break
    if not results:
        return None
    learnt, static = (np.stack(arrays) for arrays in zip(*results, strict=True))
    return Transfer(tuple(int(layer) for layer in chosen[: len(results)]), learnt, static)


def token_rows(lm: LoadedModel, items: Sequence[Histories], settings: Uncertainty) -> list[tuple[torch.Tensor, int]]:
    """Per sentence: int64 [kinds, 1 + length + sentence tokens] and ``length``, the tokens of history, equal for all.

    A history is cut at its beginning, so that the sentence follows its end. The row of no history repeats the first
    token, which attention must be told to ignore.
    """
    texts = [
        [plain_ids(lm, text) for text in (item.same_topic, item.paraphrase, item.other_language)] for item in items
    ]
    length = min(settings.history, *(len(ids) for kinds in texts for ids in kinds))
    random = torch.Generator().manual_seed(settings.seed)
    first = first_token(lm)
    rows = []
    for index, item in enumerate(items):
        same, paraphrase, language = texts[index]
        other = texts[(index + 1) % len(items)][0]
        noise = random_ids(lm, (length,), random).tolist()
        before = [same[-length:], paraphrase[-length:], [first] * length, other[-length:], language[-length:], noise]
        sentence = plain_ids(lm, " " + item.sentence)
        rows.append((torch.tensor([[first, *history, *sentence] for history in before]), length))
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
    scores = torch.stack([score(strengths(sentence)) for sentence in activations])
    sets = active(scores, keep).cpu().numpy()
    return jaccard(sets, sets[REFERENCE])


def _floor(references: list[list[np.ndarray]]) -> np.ndarray:
    """Overlap of every sentence's reference sets with the next sentence's: float64 [sentences, layers]."""
    following = references[1:] + references[:1]
    return np.array(
        [
            [float(jaccard(a[: len(b)], b[: len(a)]).mean()) for a, b in zip(reference, next_reference, strict=True)]
            for reference, next_reference in zip(references, following, strict=True)
        ]
    )


def transfer_recalls(
    block: FeedForward,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    groups: np.ndarray,
    keep: float,
    *,
    is_relu: bool = False,
    stop: threading.Event | None = None,
) -> tuple[np.ndarray, ...]:
    """Recall of active sets as DejaVu's predictor finds them, on sentences that it was not trained on.

    The sentences are dealt to ``FOLDS`` folds; each fold is predicted by predictors trained on the others, one per
    kind of history. The last sentence of a training set chooses the epoch, as held-out text does for the method.

    Args:
        inputs: what ``block`` read, float32 [kinds, tokens, d_model].
        targets: importances, float32 [kinds, tokens, d_ff].
        groups: which sentence each token is of, int [tokens], ascending from 0.
        keep: the share of neurons in an active set.
        is_relu: neurons that are zero never fire, however few others do.

    Returns:
        float64 [sentences, kinds trained under, kinds tested under], and [sentences, kinds trained under, kinds tested
        under] again of a static guess, the neurons that matter most on average in training.

    Raises:
        Stopped: ``stop`` was set.
    """
    kinds, sentences = len(inputs), int(groups.max()) + 1
    recipe = replace(RECIPE, rank=min(RECIPE.rank, *inputs.shape[2:], *targets.shape[2:]), share=keep)
    truth = active(targets, keep)
    learnt, static = (np.zeros((sentences, kinds, kinds)) for _ in range(2))
    for fold in range(FOLDS):
        test = torch.from_numpy(groups % FOLDS == fold)
        known = groups[~test.numpy()]
        held_out = int((known == known.max()).sum())
        for kind in range(kinds):
            if stop is not None and stop.is_set():
                raise Stopped
            lesson = Lesson(block, inputs[kind, ~test], targets[kind, ~test], is_relu, held_out)
            tensors = recipe.learn(lesson, lambda _: None).tensors
            guesses = inputs[:, test] @ tensors["first"].T @ tensors["second"].T
            average = targets[kind, ~test].mean(dim=0)
            for recalls, guess in ((learnt, guesses), (static, average.expand_as(guesses))):
                recall = _recall(guess, truth[:, test], keep)
                for sentence in range(fold, sentences, FOLDS):
                    recalls[sentence, kind] = recall[:, groups[test.numpy()] == sentence].mean(axis=1)
    return learnt, static


def _recall(guess: torch.Tensor, truth: torch.Tensor, keep: float) -> np.ndarray:
    """Share of the true active set that is in the predicted one, equally large: float64 [kinds, tokens]."""
    count = max(1, round(keep * guess.shape[-1]))
    chosen = torch.zeros_like(truth).scatter(-1, guess.topk(count, dim=-1).indices, True)
    return ((chosen & truth).sum(dim=-1) / truth.sum(dim=-1).clamp_min(1)).double().cpu().numpy()
