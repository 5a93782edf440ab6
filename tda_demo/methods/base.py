"""The contract of a method: WHICH neurons fire. A method is one file and one dataclass of settings.

Bound to a model it becomes a policy: a sequence-level one (``sequence.SequencePolicy``) looks at the activations of the
prompt, which runs dense, and answers with one active set per layer for the whole generation; a token-level one
(``token.TokenPolicy``) answers anew at every token.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ..calibration.priors import prior_of
from ..calibration.sources import ANSWERS, Source
from ..support.progress import Report, silent
from .first_use import bind_at_once
from .low_bit import low_bit_rest
from .patching import patch_model
from .policy import Policy
from .sequence import EvidencePolicy, SequencePolicy
from .settings import Range, check, ordered_fields, setting

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Dial:
    """The one setting that trades quality for bytes: monotone from ``dense``, which is exact, to ``sparsest``."""

    setting: str
    dense: float
    sparsest: float


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a method. ``with method(model):`` patches on entry and restores on exit, after an exception too."""

    name: ClassVar[str]
    dial: ClassVar[Dial]
    leaves_out: ClassVar[str] = "of the MLP neurons"  # what the sparsity of a race under it is a share of
    is_control: ClassVar[bool] = False  # chooses blindly: what every other method has to beat

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        check(self)

    @abstractmethod
    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> Policy:
        """The policy for ``lm``; may calibrate on first use, on ``source``, telling ``report``.

        Raises:
            UserError: a setting is out of its range or does not fit the model.
        """

    def without_calibration(self) -> Self:
        """The nearest of its kind that a prompt alone is enough for; itself where there is none."""
        return self

    def without_copies(self) -> Self:
        """What has the same tables and holds no copy of the model in memory."""
        return self

    @property
    def has_rest(self) -> bool:
        """Whether the neurons that it leaves out contribute what a 4-bit copy of them says."""
        return False

    def settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in ordered_fields(self)}

    @contextmanager
    def __call__(self, lm: LoadedModel) -> Iterator[LoadedModel]:
        """Within the context a prompt (a call on an empty cache) runs dense and chooses the neurons of later calls.

        A large model that is not calibrated does without, as in a race (``first_use``), and a warning says so.

        Raises:
            UserError: as ``bind``.
        """
        bound = bind_at_once(self, lm)
        if bound.note:
            warnings.warn(f"{bound.note}; 'tda_demo calibrate' does it, once.", stacklevel=3)
        with patch_model(lm, bound.policy):
            yield lm


@dataclass(frozen=True, kw_only=True)
class SequenceMethod(Method):
    """A sequence-level method: ``policy`` says how it chooses; what else all of them can do is here, and ours."""

    first: int = setting(
        0, "how many generated tokens run dense before the neurons are chosen; they are evidence too", Range(0, 4096)
    )
    rest: Literal["skip", "4bit"] = setting(
        "skip", "what the neurons left out contribute: nothing, or what a 4-bit copy of them says"
    )

    @abstractmethod
    def policy(self, lm: LoadedModel, report: Report, source: Source) -> SequencePolicy:
        """How it chooses on ``lm``; may calibrate and raises as ``bind`` does."""

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> SequencePolicy:
        policy = self.policy(lm, report, source)
        policy.first = self.first
        if self.has_rest and self.leaves_something_out:
            policy.rest = low_bit_rest(lm, report)
        return policy

    def without_copies(self) -> Self:
        return replace(self, rest="skip")

    @property
    def has_rest(self) -> bool:
        return self.rest == "4bit"

    @property
    def leaves_something_out(self) -> bool:
        """Whether its dial is not at its exact end."""
        return getattr(self, self.dial.setting) != self.dial.dense


@dataclass(frozen=True, kw_only=True)
class EvidenceMethod(SequenceMethod):
    """One that adds up evidence over tokens, of which a prior may be part and which may go on after the prompt."""

    prior: float = setting(
        0.0, "how many tokens of the prompt the calibration texts' average weighs as much as", Range(0, inf)
    )
    refresh: int = setting(
        0, "choose the neurons anew every so many tokens, by a dense step each; 0 never", Range(0, inf)
    )

    @property
    @abstractmethod
    def evidence_kind(self) -> str:
        """The name of what it adds up, which tells its prior from others."""

    @abstractmethod
    def policy(self, lm: LoadedModel, report: Report, source: Source) -> EvidencePolicy: ...

    def without_calibration(self) -> Self:
        return replace(self, prior=0.0)

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> SequencePolicy:
        policy = super().bind(lm, report, source)
        policy.refresh = self.refresh
        if self.prior and self.leaves_something_out:
            policy.prior_tokens = self.prior
            policy.priors = prior_of(lm, self.evidence_kind, policy.evidence, source, report)
        return policy
