"""The contract of a sequence-level method: one active set a layer, chosen from evidence.

The prompt's activations are what the papers look at. A short prompt is a bad sample of its answer, so a prior, what is
known of the model's answers to other prompts, may count as so many tokens more; the first tokens of the answer may run
dense and be looked at before the sets are chosen; and a dense step every so many tokens may choose them anew: neurons
that are not computed cannot be observed. Dense steps are timed and counted as what they are, packing new sets too.

All this is ours, and so is that one of the first tokens counts ``FIRST_COUNTS`` times: it is the answer's, and says
more of what follows than a token of the prompt. A dense step between sparse ones counts once for every token it stands
for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.cett import strengths
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .plan import ActiveSets, Plan, UseObserver
from .policy import Policy, PromptReader
from .rest import Rest, rest_note

FIRST_COUNTS = 4
QUANTILES = 65  # of a layer's scores: what shares are told from

Choice = Callable[["torch.Tensor"], "torch.Tensor"]
"""The active set, bool [d_ff], that follows from the mean evidence of a token, float32 [d_ff]."""


class SequencePolicy(Policy):
    """A sequence-level method: one active set a layer, chosen from the prompt's activations.

    What it adds up over tokens is its evidence. ``priors`` float32 [d_ff] a layer is the evidence of ``prior_tokens``
    more tokens that were never read; the ``first`` tokens that are generated run dense and are evidence too, as is a
    dense step every ``refresh`` tokens after them. ``rest`` is what neurons outside a set contribute.
    """

    first: int = 0
    refresh: int = 0
    prior_tokens: float = 0.0
    priors: tuple[torch.Tensor, ...] = ()
    rest: Rest | None = None

    @property
    def rest_bytes(self) -> tuple[float, ...]:  # type: ignore[override]
        return () if self.rest is None else self.rest.neuron_bytes

    @abstractmethod
    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """The active set as bool [d_ff], from the prompt's ``activations`` [T, d_ff]."""

    def evidence(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """What tokens with these ``activations`` [T, d_ff] say of the neurons, summed over them: float32 [d_ff].

        Zero where the choice does not look at any, as that of ``select`` alone.
        """
        return torch.zeros(block.d_ff, device=activations.device)

    def choice(self, block: FeedForward, activations: torch.Tensor, evidence: torch.Tensor) -> Choice:
        """How sets follow from evidence after a prompt with these ``activations`` [T, d_ff] and this mean ``evidence``
        [d_ff], the prior's included.
        """
        chosen = self.select(block, activations)
        return lambda _evidence: chosen

    def count_fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How many neurons fire at each token, int64 [T]: those whose activation at that token is strong.

        ``activations`` [T, k] holds the neurons ``computed`` int64 [k] (None: all of them). Unless a method has a
        threshold for a token, strong is at least the token's root mean square, whatever the method's score, so that
        heatmaps can be compared.
        """
        strength = strengths(activations)
        return ((strength >= block.d_ff**-0.5) & (strength > 0)).sum(dim=1)

    def reader(self) -> PromptReader:
        return EvidenceReader(self)

    def count_fired_in_prompt(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.count_fired(block, activations)


class EvidencePolicy(SequencePolicy):
    """One whose sets follow from what it adds up: ``evidence`` and ``choice`` say all of it."""

    @abstractmethod
    def evidence(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def choice(self, block: FeedForward, activations: torch.Tensor, evidence: torch.Tensor) -> Choice: ...

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return Evidence.of(self, block, activations).active()


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of a layer, in one text: ``sums`` float32 [d_ff] over ``tokens`` tokens, and the ``choice`` that follows."""

    sums: torch.Tensor
    tokens: float
    choice: Choice

    @classmethod
    def of(cls, policy: SequencePolicy, block: FeedForward, activations: torch.Tensor) -> Evidence:
        """After a prompt with these ``activations`` [T, d_ff]: ``(sum over t of e_t + w prior) / (T + w)`` is its mean,
        w being ``policy.prior_tokens``.
        """
        sums, tokens = policy.evidence(block, activations), float(len(activations))
        if policy.prior_tokens:
            sums = sums + policy.prior_tokens * policy.priors[block.layer]
            tokens += policy.prior_tokens
        return cls(sums, tokens, policy.choice(block, activations, sums / tokens))

    def more(self, sums: torch.Tensor, tokens: float) -> Evidence:
        """With ``sums`` [d_ff] over so many ``tokens`` added."""
        return replace(self, sums=self.sums + sums, tokens=self.tokens + tokens)

    def active(self) -> torch.Tensor:
        """Bool [d_ff]."""
        return self.choice(self.sums / self.tokens)

    def quantiles(self) -> np.ndarray:
        """Evenly spaced quantiles of the scores, roots of the mean evidence, from the least on: float64 [QUANTILES]."""
        scores = (self.sums / self.tokens).sqrt().float().cpu().numpy()
        return np.quantile(scores, np.linspace(0, 1, QUANTILES))


class EvidenceReader(PromptReader):
    """Looks at text by text: a set belongs to its own prompt."""

    def __init__(self, policy: SequencePolicy) -> None:
        self.policy = policy
        self.blocks: list[FeedForward] = []
        self.layers: list[tuple[Evidence, ...]] = []
        self.masks: list[torch.Tensor] = []

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        texts = tuple(Evidence.of(self.policy, block, text) for text in activations)
        self.blocks.append(block)
        self.layers.append(texts)
        if not self.policy.first:
            self.masks.append(torch.stack([text.active() for text in texts]))

    def plan(self) -> Plan:
        known = _Known(self.policy, tuple(self.blocks), tuple(self.layers))
        return _DenseTokens(known, self.policy.first, FIRST_COUNTS) if self.policy.first else known.sets(self.masks)


@dataclass(frozen=True, eq=False)
class _Known:
    """The evidence so far: a layer's (outer) of every text (inner), of the policy's ``blocks``."""

    policy: SequencePolicy
    blocks: tuple[FeedForward, ...]
    layers: tuple[tuple[Evidence, ...], ...]

    def sets(self, masks: Sequence[torch.Tensor]) -> ActiveSets:
        """The plan with the active sets ``masks`` [texts, d_ff] of every layer."""
        if self.policy.refresh:
            return RefreshedSets(tuple(masks), self.policy.rest, self.layers, self)
        return ActiveSets(tuple(masks), self.policy.rest, self.layers)

    def after(self, activations: Sequence[torch.Tensor], counts: float) -> ActiveSets:
        """The plan after tokens with these ``activations`` [texts, tokens, d_ff] a layer, each counted so often."""
        layers = tuple(
            tuple(
                evidence.more(counts * self.policy.evidence(block, seen), counts * len(seen))
                for evidence, seen in zip(texts, layer, strict=True)
            )
            for block, texts, layer in zip(self.blocks, self.layers, activations, strict=True)
        )
        masks = [torch.stack([evidence.active() for evidence in layer]) for layer in layers]
        return replace(self, layers=layers).sets(masks)


@dataclass(frozen=True, eq=False)
class RefreshedSets(ActiveSets):
    """Active sets for all tokens but the last of every ``policy.refresh``, a dense one that gives the next sets."""

    known: _Known | None = None  # never None; fields with a default come before it

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self._known.policy.refresh - 1

    @property
    def is_dense(self) -> bool:
        """Those that come next may leave neurons out."""
        return False

    def next(self, activations: Sequence[torch.Tensor]) -> Plan:
        return _DenseTokens(self._known, 1, self._known.policy.refresh)

    @property
    def _known(self) -> _Known:
        assert self.known is not None
        return self.known


@dataclass(frozen=True, eq=False)
class _DenseTokens(Plan):
    """Tokens with every neuron, whose activations, each counted ``counts`` times, give the sets that come next."""

    known: _Known
    tokens: int
    counts: int

    observes = True

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self.tokens

    @property
    def any_rest(self) -> Rest | None:
        return self.known.policy.rest

    @property
    def note(self) -> str:  # type: ignore[override]
        return rest_note(self.known.policy.rest)

    def on(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        return ActiveSets(self._everything()).on(blocks, see)

    def active(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self._everything()[block.layer][:, None]

    def missing_output(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*activations.shape[:-1], block.down.out_features, device=activations.device)

    def next(self, activations: Sequence[torch.Tensor]) -> Plan:
        # What was fed in one piece may be longer: it stands for as many tokens all the same.
        read = activations[0].shape[1]
        return self.known.after(activations, self.counts * min(1.0, self.tokens / read))

    def _everything(self) -> tuple[torch.Tensor, ...]:
        layers = self.known.layers
        return tuple(
            torch.ones(len(texts), *texts[0].sums.shape, dtype=torch.bool, device=texts[0].sums.device)
            for texts in layers
        )
