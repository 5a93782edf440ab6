"""The claims a visitor can pick, what they may set of each, and how far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...theory.claims import INERTIA, ROOT_CAUSE, TRAINING, UNCERTAINTY, Claim
from ...theory.settings import InertiaSettings, RootCauseSettings, TrainingSettings, UncertaintySettings


@dataclass(frozen=True)
class Size:
    """A setting of the experiment's, from ``low`` to ``high``; its default is the experiment's own."""

    name: str
    label: str
    low: float
    high: float
    step: float = 1


@dataclass(frozen=True)
class Experiment:
    """``text`` says what a text of the visitor's own is used for; empty where none makes sense. ``takes`` is the time
    of the default size, in words."""

    name: str
    title: str
    claim: Claim
    settings: Callable[..., Any]
    sizes: tuple[Size, ...]
    takes: str
    text: str = ""
    uses_model: bool = True

    @property
    def defaults(self) -> dict[str, Any]:
        settings = self.settings()
        return {size.name: getattr(settings, size.name) for size in self.sizes}


_SEED = Size("seed", "Seed", 0, 2**31 - 1)
_KEEP = Size("keep", "Share counted as active", 0.05, 0.95, 0.05)
EXPERIMENTS = (
    Experiment(
        "root-cause",
        "Root cause",
        ROOT_CAUSE,
        RootCauseSettings,
        (
            Size("passages", "Passages", 4, 32),
            Size("tokens", "Tokens of each", 8, 192),
            Size("twin_layers", "Layers of untrained models", 0, 4),
            _SEED,
        ),
        "about half a minute on two cores",
        "A text is cut into pieces, which take the place of the passages; 8 tokens or more.",
    ),
    Experiment(
        "uncertainty",
        "Uncertainty",
        UNCERTAINTY,
        UncertaintySettings,
        (
            Size("sentences", "Sentences", 4, 16),
            Size("history", "Tokens of history", 4, 64),
            Size("predictor_layers", "Layers with a predictor", 1, 32),
            _KEEP,
            _SEED,
        ),
        "well under a minute on two cores",
    ),
    Experiment(
        "inertia",
        "Inertia",
        INERTIA,
        InertiaSettings,
        (
            Size("sequences", "Sequences", 8, 24, 2),
            Size("length", "Tokens of each", 8, 96),
            Size("prompts", "Texts to go on with", 4, 8),
            Size("tokens", "Tokens generated", 1, 512),
            _KEEP,
            _SEED,
        ),
        "under a minute on two cores",
        "A text is cut into pieces, which take the place of the natural sequences; 56 tokens or more.",
    ),
    Experiment(
        "training",
        "Training",
        TRAINING,
        TrainingSettings,
        (
            Size("steps", "Steps of each run", 5, 600, 5),
            Size("runs", "Runs of each function", 4, 8),
            _SEED,
        ),
        "under two minutes on two cores; it trains models of its own, the one chosen above is not used",
        uses_model=False,
    ),
)
