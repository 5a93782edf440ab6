"""A ridge regression that predicts which neurons matter, trained under one kind of history and tested under another."""

from __future__ import annotations

import numpy as np
import torch

from .reading import active

_RIDGE = 0.1  # of the mean squared length of a training input
FOLDS = 4


def recalls(inputs: torch.Tensor, targets: torch.Tensor, groups: np.ndarray, keep: float) -> tuple[np.ndarray, ...]:
    """Recall of the predicted active sets on sentences that were not trained on.

    The sentences are dealt to ``FOLDS`` folds; each fold is predicted by regressions trained on the others, one per
    kind of history.

    Args:
        inputs: what the block read, float32 [kinds, tokens, d_model].
        targets: importances, float32 [kinds, tokens, d_ff].
        groups: which sentence each token is of, int [tokens], from 0.
        keep: the share of neurons in an active set.

    Returns:
        float64 [sentences, kinds trained under, kinds tested under], and [sentences, kinds trained under, kinds tested
        under] again of a static guess, the neurons that matter most on average in training.
    """
    kinds, sentences = len(inputs), int(groups.max()) + 1
    truth = active(targets, keep)
    learnt, static = (np.zeros((sentences, kinds, kinds)) for _ in range(2))
    for fold in range(FOLDS):
        test = torch.from_numpy(groups % FOLDS == fold)
        for kind in range(kinds):
            average = targets[kind, ~test].mean(dim=0)
            guesses = _ridge(inputs[kind, ~test], targets[kind, ~test], inputs[:, test])
            for place, guess in ((learnt, guesses), (static, average.expand_as(guesses))):
                found = _recall(guess, truth[:, test], keep)
                for sentence in range(fold, sentences, FOLDS):
                    place[sentence, kind] = found[:, groups[test.numpy()] == sentence].mean(axis=1)
    return learnt, static


def _ridge(inputs: torch.Tensor, targets: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Predictions for ``new`` [kinds, m, d_model], by the dual form: there are fewer tokens than features."""
    centre, spread = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-6)
    known, new = (inputs - centre) / spread, (new - centre) / spread
    average = targets.mean(dim=0)
    kernel = known @ known.T
    kernel += _RIDGE * kernel.diagonal().mean() * torch.eye(len(kernel), device=kernel.device)
    return average + (new @ known.T) @ torch.linalg.solve(kernel, targets - average)


def _recall(guess: torch.Tensor, truth: torch.Tensor, keep: float) -> np.ndarray:
    """Share of the true active set that is in the predicted one, equally large: float64 [kinds, tokens]."""
    count = max(1, round(keep * guess.shape[-1]))
    chosen = torch.zeros_like(truth).scatter(-1, guess.topk(count, dim=-1).indices, True)
    return ((chosen & truth).sum(dim=-1) / truth.sum(dim=-1).clamp_min(1)).double().cpu().numpy()
