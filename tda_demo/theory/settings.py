"""How large each experiment is: what is read, how much of it, from which seed."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from ..estimates import LEAST_CLUSTERS
from .texts import histories

SHORTEST = 8  # tokens of a sequence of claim 3, so that there is something before and after the places looked at


@dataclass(frozen=True)
class RootCauseSettings:
    """``passages`` texts of at most ``tokens`` tokens; ``twin_layers`` layers in each untrained twin, 0 for none."""

    passages: int = 16
    tokens: int = 96
    twin_layers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        if self.passages < LEAST_CLUSTERS:
            raise UserError(f"passages is {self.passages}; an interval needs at least {LEAST_CLUSTERS}.")
        if self.tokens < 2:
            raise UserError(f"tokens is {self.tokens}; a token and the next one, 2, are the least.")
        if self.twin_layers < 0:
            raise UserError(f"twin_layers is {self.twin_layers}; it must be 0 or more.")
        _check_seed(self.seed)


@dataclass(frozen=True)
class UncertaintySettings:
    """``history`` tokens at most before each sentence; ``keep``, the share of neurons in an active set;
    ``predictor_layers`` layers, evenly spread, get a predictor."""

    sentences: int = 16
    history: int = 36
    keep: float = 0.3
    predictor_layers: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        most = len(histories())
        if not LEAST_CLUSTERS <= self.sentences <= most:
            raise UserError(f"sentences is {self.sentences}; it must be from {LEAST_CLUSTERS} to {most}.")
        if self.history < 1:
            raise UserError(f"history is {self.history}; it must be at least 1.")
        if not 0 < self.keep < 1:
            raise UserError(f"keep is {self.keep}; it must be a share between 0 and 1.")
        if self.predictor_layers < 1:
            raise UserError(f"predictor_layers is {self.predictor_layers}; it must be at least 1.")
        _check_seed(self.seed)


@dataclass(frozen=True)
class InertiaSettings:
    """``sequences`` texts of ``length`` tokens of each kind (natural, random); ``tokens`` generated after each of
    ``prompts`` prompts; ``keep``, the share of neurons in an active set."""

    sequences: int = 16
    length: int = 32
    prompts: int = 8
    tokens: int = 512
    keep: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        if self.sequences < 2 * LEAST_CLUSTERS or self.sequences % 2:
            raise UserError(
                f"sequences is {self.sequences}; it must be an even number from {2 * LEAST_CLUSTERS} on, since they "
                "are compared in pairs."
            )
        if self.length < SHORTEST:
            raise UserError(f"length is {self.length}; it must be at least {SHORTEST} tokens.")
        if not LEAST_CLUSTERS <= self.prompts <= self.sequences:
            raise UserError(f"prompts is {self.prompts}; it must be from {LEAST_CLUSTERS} to sequences.")
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}; it must be at least 1.")
        if not 0 < self.keep < 1:
            raise UserError(f"keep is {self.keep}; it must be a share between 0 and 1.")
        _check_seed(self.seed)


@dataclass(frozen=True)
class TrainingSettings:
    """``runs`` runs of ``steps`` steps for each activation function; run r of both begins from the same draw."""

    steps: int = 150
    runs: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; it must be at least 1.")
        if self.runs < LEAST_CLUSTERS:
            raise UserError(f"runs is {self.runs}; an interval needs at least {LEAST_CLUSTERS}.")
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    """Raises UserError where torch would not take ``seed``."""
    if not 0 <= seed < 2**62:
        raise UserError(f"seed is {seed}; it must be a whole number from 0 to 2^62 - 1.")
