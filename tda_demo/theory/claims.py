"""The paper's claims, and what must be seen if they are true."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """``statement``: the paper's claim in two sentences; ``prediction``: what the experiment sees if it is true."""

    statement: str
    prediction: str


_CAUSE = (
    "Training makes activations sparse because the loss gradient at a positive activation is positive on average, "
    "E[dL/dp] > 0. Gradient descent so lowers positive activations: with ReLU they end at zero, with SiLU or GELU near "
    "it."
)
ROOT_CAUSE = Claim(_CAUSE, "The mean of dL/dp over positive activations lies above zero in most layers.")
UNCERTAINTY = Claim(
    "Which neurons matter depends on what was read before, because weight importance accumulates over the history. A "
    "predictor trained on past inputs therefore cannot tell which neurons matter for this one, unless the model uses "
    "ReLU.",
    "The active sets of the same sentence overlap less after a changed history than after a paraphrased one, and a "
    "predictor trained under one kind of history loses recall under another, most of what it had learnt.",
)
INERTIA = Claim(
    "Which neurons fire for a token is driven by the previous activations of the sequence. The token's own meaning "
    "matters less, so that activity goes on by inertia.",
    "Active sets follow a shared prefix more than a shared token, neighbours in random sequences are alike, and a "
    "prompt's active set keeps covering what is generated after it.",
)
TRAINING = Claim(
    _CAUSE,
    "While the loss falls, exact zeros become more frequent with ReLU and activations near zero with SiLU, and the "
    "mean of dL/dp over positive activations is above zero.",
)
