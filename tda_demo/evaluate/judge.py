"""The judge of a race: the passes by which texts are scored, over one text that grows, whose prompt has been read."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ..decode.arm import Prefill
from ..decode.engine import Engine
from ..decode.shared_model import share_weights
from ..methods.plan import PlanSchedule
from ..model.feedforward import FeedForward, find_blocks
from ..stats import metrics
from .fidelity import ServedPlans, realised_cett
from .scoring import SparsePass, dense_pass, pass_under

if TYPE_CHECKING:
    from transformers import Cache

    from ..model.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class Judgement:
    """Teacher-forced on one text: logits [positions, vocabulary] of both models, realised CETT per layer."""

    dense_logits: torch.Tensor
    sparse_logits: torch.Tensor
    cett: list[float]

    def compare(self, targets: Sequence[int]) -> metrics.ForcedComparison:
        """On the tokens that follow each position."""
        given = torch.tensor(targets, device=self.dense_logits.device)
        return metrics.compare_forced(self.dense_logits, self.sparse_logits, given)


class Judge:
    """Both models on one text that grows, slice by slice, under the plan of each of ``prefills``, of one prompt.

    One dense pass serves all of them. It runs in a module tree of its own: races may run in parallel.
    """

    def __init__(self, engine: Engine, prefills: Sequence[Prefill]) -> None:
        model = share_weights(engine.lm.model)
        self._lm = dataclasses.replace(engine.lm, model=model, blocks=find_blocks(model))
        self._cache = copy.deepcopy(prefills[0].cache)
        self._arms = [_ForcedArm(self._lm, prefill) for prefill in prefills]

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> list[Judgement]:
        """One judgement a prefill of the next ``tokens``, at least one."""
        inputs = self._inputs(tokens)
        passes = [arm.read(inputs) for arm in self._arms]
        dense_logits, cett = self._read_dense(inputs, [sparse.served for sparse in passes])
        pairs = zip(passes, cett, strict=True)
        return [Judgement(dense_logits, sparse.logits[0], layers) for sparse, layers in pairs]

    @torch.inference_mode()
    def read_cett(self, tokens: Sequence[int]) -> list[list[float]]:
        """Realised CETT a layer (inner) of every prefill on the next ``tokens``, which cost the dense pass and, of
        plans that others take the place of, one under them.
        """
        inputs = self._inputs(tokens)
        return self._read_dense(inputs, [arm.serve(inputs) for arm in self._arms], logits_to_keep=1)[1]

    def _inputs(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self._lm.device)

    def _read_dense(
        self, inputs: torch.Tensor, served: Sequence[ServedPlans], *, logits_to_keep: int = 0
    ) -> tuple[torch.Tensor, list[list[float]]]:
        """Logits [positions, vocabulary], the last ones where only some are kept, and what ``read_cett`` gives."""
        cett: list[list[float]] = [[] for _ in served]

        def see(block: FeedForward, x: torch.Tensor, a: torch.Tensor) -> None:
            for layers, plans in zip(cett, served, strict=True):
                layers.append(float(realised_cett(block, x, a, plans)))

        return dense_pass(self._lm, self._cache, inputs, see, logits_to_keep=logits_to_keep)[0], cett


class _ForcedArm:
    """A text that grows, under the plan of a prefill and those that take its place."""

    def __init__(self, lm: LoadedModel, prefill: Prefill) -> None:
        self._lm, self._prompt = lm, prefill.cache
        self._schedule = PlanSchedule(prefill.plan)

    @cached_property
    def _cache(self) -> Cache:
        """Of what it has read: made by the first pass, and as large as the prompt."""
        return copy.deepcopy(self._prompt)

    def read(self, inputs: torch.Tensor) -> SparsePass:
        """A pass over the next tokens, int64 [1, T]."""
        return pass_under(self._lm, self._cache, inputs, self._schedule)

    def serve(self, inputs: torch.Tensor) -> ServedPlans:
        """The plans that serve the next tokens, int64 [1, T]: found by a pass where more than one may."""
        if self._schedule.left is None:
            return [(self._schedule.plan, inputs.shape[1])]
        return self.read(inputs).served
