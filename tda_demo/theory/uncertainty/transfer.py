"""DejaVu's predictor of which neurons matter, trained under one kind of history and tested under another."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from ...methods.trained.dejavu import PredictorRecipe
from ...methods.trained.recipe import Lesson
from ...model.feedforward import FeedForward
from ...support.lazy import torch
from ..reading import Stopped, active

RECIPE = PredictorRecipe()
FOLDS = 4


def recalls(
    block: FeedForward,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    groups: np.ndarray,
    keep: float,
    *,
    is_relu: bool = False,
    stop: threading.Event | None = None,
) -> tuple[np.ndarray, ...]:
    """Recall of the predicted active sets on sentences that were not trained on.

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
            learned = recipe.learn(lesson, lambda _: None).tensors
            guesses = inputs[:, test] @ learned["first"].T @ learned["second"].T
            average = targets[kind, ~test].mean(dim=0)
            for place, guess in ((learnt, guesses), (static, average.expand_as(guesses))):
                found = _recall(guess, truth[:, test], keep)
                for sentence in range(fold, sentences, FOLDS):
                    place[sentence, kind] = found[:, groups[test.numpy()] == sentence].mean(axis=1)
    return learnt, static


def _recall(guess: torch.Tensor, truth: torch.Tensor, keep: float) -> np.ndarray:
    """Share of the true active set that is in the predicted one, equally large: float64 [kinds, tokens]."""
    count = max(1, round(keep * guess.shape[-1]))
    chosen = torch.zeros_like(truth).scatter(-1, guess.topk(count, dim=-1).indices, True)
    return ((chosen & truth).sum(dim=-1) / truth.sum(dim=-1).clamp_min(1)).double().cpu().numpy()
