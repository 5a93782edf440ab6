"""The contract of an engine: what runs a model, in two arms from one prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..methods.policy import Policy
from ..support.progress import Report, silent
from .arm import Arm, Prefill
from .prefill import read_prompt
from .weight_bytes import StepBytes

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


class Engine(ABC):
    """Runs a model. Nothing it does is visible to another engine of the same model, so races may run in parallel."""

    name: str

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm

    @classmethod
    def runs(cls, policy: Policy) -> bool:
        """Whether its sparse arm can decode under what ``policy`` plans."""
        return True

    @property
    @abstractmethod
    def step_bytes(self) -> StepBytes:
        """The weight bytes that its arms read."""

    @abstractmethod
    def warm_up(self, report: Report = silent, policy: Policy | None = None) -> None:
        """Runs what is slow only once (thread pools, compilation), so that it falls outside every timing.

        A token-level ``policy`` has a kernel of its own to compile.
        """

    def prefill(self, ids: list[int], policy: Policy) -> Prefill:
        """The prompt ``ids``, read dense in transformers."""
        return self.prefills(ids, [policy])[0]

    def prefills(self, ids: list[int], policies: Sequence[Policy]) -> list[Prefill]:
        """One pass over the prompt that all ``policies`` look at: a prefill each, of the same logits and cache."""
        return read_prompt(self.lm, ids, policies)

    @abstractmethod
    def dense_arm(self, prefill: Prefill, room: int) -> Arm:
        """An arm that has read the prompt and may take ``room`` steps."""

    @abstractmethod
    def sparse_arm(self, prefill: Prefill, room: int) -> Arm:
        """The same under the prefill's plan."""

    def sparse_logits(self, prefill: Prefill, tokens: list[int]) -> torch.Tensor | None:
        """Logits [tokens, vocabulary] of the sparse arm fed ``tokens``, where its weights are not the model's own.

        None where it computes what the model computes under the plan, which is then cheaper to have at once.
        """
        return None
